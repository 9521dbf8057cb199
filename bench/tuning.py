"""What a search finds and what it costs: halving against chance, and a trial against its run alone.

python -m bench.tuning curves      train the demo's model at 120 pairs of learning rates: bench/results/tuning.json
python -m bench.tuning asha        over these curves: 16 trials with ASHA / as many steps of whole trials, 5 seeds
python -m bench.tuning overhead    a trial of a search / the same run alone, 5 pairs, alternating

In `asha` Ray Tune, its scheduler, the gate and all are real; what a trial's run does instead of training is to report
the curve that was recorded for its values. Both sides draw by chance from the same pairs, by the same seed.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import ray

import rtrain
from bench.asked import parser
from recipes.dlrm_movielens import run as demo
from rtrain import Asha, Duration, Evaluation, Handoff, Parallel, Run, Search, Tracking
from rtrain.storage import Folder
from rtrain.training import history
from rtrain.tuning import engine

CURVES = Path(__file__).parent / "results" / "tuning.json"
DENSE_LR = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 3e-1)
TABLE_LR = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""As wide as who knows nothing would search."""
EVERY, STEPS, TRIALS = 20, 320, 16
SPACE = {"optim.lr": rtrain.choice(*DENSE_LR), "sparse_optim.lr": rtrain.choice(*TABLE_LR)}


def asked(storage: str, name: str, seed: int = 0) -> Run:
    """The demo's run, as trials have it here."""
    return replace(
        demo(),
        name=name,
        storage=storage,
        seed=seed,
        duration=Duration(steps=STEPS),
        evaluation=Evaluation(every=Duration(steps=EVERY), monitor="auc"),
        handoff=Handoff(export=False),
        tracking=Tracking(to=()),
    )


def key(dense: float, table: float) -> str:
    """Of one pair in `CURVES`."""
    return f"{dense:g} {table:g}"


def curves() -> int:
    """Record one run a pair that is not there yet, one after the other, in this process."""
    found: dict[str, list[float]] = json.loads(CURVES.read_text())["auc"] if CURVES.exists() else {}
    with tempfile.TemporaryDirectory() as storage:
        for dense, table in product(DENSE_LR, TABLE_LR):
            if key(dense, table) in found:
                continue
            name = f"d{dense:g}-t{table:g}"
            run = replace(asked(storage, name), parallel=Parallel(dense="ddp"))
            run = rtrain.override(run, {"optim.lr": dense, "sparse_optim.lr": table, "cluster.workers": 1})
            rtrain.train(run, launcher="inline")
            lines = history.read(Folder(run.folder))
            found[key(dense, table)] = [round(line["auc"], 5) for line in lines if line["kind"] == "valid"]
            print(f"{name}: {found[key(dense, table)][-1]:.4f}", file=sys.stderr, flush=True)
            _write(found)
    return 0


def _write(found: Mapping[str, Sequence[float]]) -> None:
    lines = ",\n".join(f" {json.dumps(pair)}: {json.dumps(found[pair])}" for pair in found)
    CURVES.write_text(f'{{"every": {EVERY}, "steps": {STEPS}, "auc": {{\n{lines}\n}}}}\n')


def recorded(run: Run, gate: Any, trial: str, token: str) -> dict[str, Any]:
    """As `rtrain.tuning.member.trained`, of a recorded curve; `steps.log` tells how far it went."""
    points = json.loads(CURVES.read_text())["auc"][key(run.optim.lr, run.sparse_optim.lr)]
    folder, best = Path(run.folder), (0, 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    for step, auc in zip(range(EVERY, STEPS + 1, EVERY), points, strict=True):
        (folder / "steps.log").write_text(str(step))
        best = max(best, (step, auc), key=lambda at: at[1])
        values = {"auc": auc, "best": {"auc": best[1]}, "best_step": best[0], "seconds": step, "last": step == STEPS}
        if ray.get(gate.report.remote(trial, token, step, values), timeout=120) == "stop":
            return {}
    return {"best": {"auc": best[1]}, "best_step": best[0], "step": STEPS}


def searched(storage: str, name: str, seed: int, search: Search) -> tuple[float, int]:
    """The best validation AUC of a search over the curves, and the steps of all its trials."""
    real = engine.searched
    try:
        engine.searched = lambda conductor, scheduler: real(conductor, scheduler, recorded)
        run = rtrain.override(asked(storage, name, seed), {"cluster.workers": 1})
        tuned = rtrain.tune(run, SPACE, search=search)
    finally:
        engine.searched = real
    steps = sum(int(log.read_text()) for log in Path(run.folder).glob("trials/*/steps.log"))
    return max(t.metrics["auc"] for t in tuned.trials if t.metrics), steps


def asha(seeds: int) -> int:
    """The best of both sides by seed, and in the median."""
    rows = []
    with tempfile.TemporaryDirectory() as storage:
        for seed in range(seeds):
            halving = Search(trials=TRIALS, sampler="random", scheduler=Asha(factor=3), concurrent=2)
            found, steps = searched(storage, f"asha-{seed}", seed, halving)
            whole = max(1, round(steps / STEPS))
            chance, spent = searched(
                storage, f"random-{seed}", seed, Search(trials=whole, sampler="random", concurrent=2)
            )
            rows.append((found, chance))
            print(
                f"seed {seed}: ASHA {found:.4f} of {TRIALS} trials in {steps} steps; by chance {chance:.4f} of {whole} "
                f"whole trials in {spent}", flush=True,
            )  # fmt: skip
    halved, by_chance = (statistics.median(side) for side in zip(*rows, strict=True))
    print(f"median of {seeds} seeds: ASHA {halved:.4f}, by chance {by_chance:.4f}")
    return 0


def _alone(run: Run) -> float:
    rtrain.train(run)
    return _trained_s(Folder(run.folder))


def _trained_s(folder: Folder) -> float:
    """From a run's first point to its last, evaluations and checkpoints among them."""
    lines: list[Mapping[str, Any]] = [x for x in history.read(folder) if x["kind"] == "train"]
    return float(lines[-1]["elapsed_s"] - lines[0]["elapsed_s"])


def overhead(pairs: int) -> int:
    """Of the same run, both ways: seconds from its first point to its last, and of all."""
    ratios, whole = [], []
    with tempfile.TemporaryDirectory() as storage:
        for pair in range(pairs):
            taken: dict[str, tuple[float, float]] = {}
            for side in ("alone", "trial") if pair % 2 else ("trial", "alone"):
                run = asked(storage, f"{side}-{pair}")
                run = replace(run, checkpoint=replace(run.checkpoint, every=run.evaluation.every, background=False))
                began = time.perf_counter()
                if side == "alone":
                    trained = _alone(run)
                else:
                    fixed = {"optim.lr": rtrain.choice(run.optim.lr)}
                    rtrain.tune(run, fixed, search=Search(trials=1, sampler="random", concurrent=1))
                    trained = _trained_s(Folder(f"{run.folder}/trials/trial-0000"))
                taken[side] = trained, time.perf_counter() - began
            ratios.append(taken["trial"][0] / taken["alone"][0])
            whole.append(taken["trial"][1] / taken["alone"][1])
            print(f"pair {pair}: " + ", ".join(f"{k} {a:.1f} s of {b:.1f}" for k, (a, b) in taken.items()), flush=True)
    for said, found in (("training", ratios), ("command to end", whole)):
        print(f"{said}: a trial / its run alone {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    return 0


def main() -> int:
    """What is asked for."""
    shape = parser("bench.tuning", __doc__)
    shape.add_argument("what", choices=("curves", "asha", "overhead"))
    shape.add_argument("--seeds", type=int, default=5, help="of asha (default: 5)")
    shape.add_argument("--pairs", type=int, default=5, help="of overhead (default: 5)")
    options = shape.parse_args()
    match options.what:
        case "curves":
            return curves()
        case "asha":
            return asha(options.seeds)
    return overhead(options.pairs)


if __name__ == "__main__":
    sys.exit(main())
