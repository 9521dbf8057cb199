"""What stands in for a trial's training: a real Ray task that reports as a run does, of a curve that is known."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import ray

EVERY, TOTAL, ALWAYS_FAILS = 10, 60, 0.2


def value(lr: float, step: int) -> float:
    """Best at a learning rate of 10^-2.5, and better the longer it trains."""
    return 1 - (math.log10(lr) + 2.5) ** 2 / 4 - math.exp(-step / 40)


def seconds(run: Any, step: int) -> float:
    """Of training: a fast learner of tables is slow."""
    return step * (1 + run.sparse_optim.lr)


def surrogate(run: Any, gate: Any, trial: str, token: str) -> dict[str, Any]:
    """As `rtrain.tuning.member.trained`: goes on from the last interval that `steps.log` tells of."""
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    log, curve = folder / "steps.log", folder / "history.jsonl"
    if not log.exists() and (newest := max(folder.glob("checkpoints/step-*"), default=None)):
        steps = range(EVERY, int(newest.name[5:]) + 1, EVERY)  # a member that took another one's weights
        log.write_text("".join(f"{step} copied\n" for step in steps))
    step = len(log.read_text().splitlines()) * EVERY if log.exists() else 0

    def tell() -> str:
        auc = value(run.optim.lr, step)
        best = {"best": {"auc": auc}, "best_step": step}
        values = {"auc": auc, **best, "seconds": seconds(run, step), "last": step >= TOTAL}
        answer: str = ray.get(gate.report.remote(trial, token, step, values), timeout=120)
        return answer

    if step and tell() == "stop":
        return {}
    while step < TOTAL:
        time.sleep(0.02)
        step += EVERY
        with log.open("a") as file:
            file.write(f"{step} {os.getpid()}\n")
        lines = curve.read_text() if curve.exists() else ""
        curve.write_text(lines + json.dumps({"kind": "valid", "step": step, "auc": value(run.optim.lr, step)}) + "\n")
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "COMMITTED").touch()
        if run.optim.lr == ALWAYS_FAILS:
            raise RuntimeError(f"rank 0 on here, step {step}: the loss is inf")
        if run.optim.lr > 0.05 and step == EVERY and not (folder / "failed").exists():
            (folder / "failed").touch()
            raise RuntimeError("rank 1 on here, step 10: the loss is nan")  # once: it is tried again
        if tell() == "stop":
            return {}
    auc = value(run.optim.lr, step)
    return {"auc": auc, "best": {"auc": auc}, "best_step": step, "step": step}
