"""rtrain against hand-written peers, alternating in one run.

    make bench                       all three, 5 pairs each
    make bench ARGS="--only rate --pairs 9 --json"

rate    examples/s of a 2-worker job   rtrain on Ray / hand-written on torchrun + TorchRec + DDP
start   command to first step          rtrain / a bare TorchTrainer with the same model
memory  peak resident bytes a worker   rtrain / hand-written, from the runs of `rate`

Each pair runs both sides one after the other, the first side changing from pair to pair; the
figure is the median of the pairs' ratios, with the smallest and largest beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.data import write
from bench.ratios import Bound, summarise, table

ROOT = Path(__file__).parents[1]
BOUNDS = {"rate": Bound(at_least=0.97), "start": Bound(at_most=1.10), "memory": Bound(at_most=1.10)}
STEPS, WARM = 230, 30


def measure(command: list[str], env: dict[str, str]) -> tuple[str, float]:
    """Run one side; its output and the moment it was started."""
    began = time.time()
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout, began


def environment(folder: Path, ray_temp: str, data: Path, steps: int) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "PYTHONPATH": str(ROOT),
        "RTRAIN_RAY_TEMP_DIR": ray_temp,
        "BENCH_DATA": str(data),
        "BENCH_STEPS": str(steps),
        "BENCH_WARM": str(WARM),
        "BENCH_STORAGE": str(folder),
    }


def rtrain_side(folder: Path, env: dict[str, str], name: str) -> dict[str, Any]:
    words = ["bench/job.py", "train", "--json", "--storage", str(folder), "--name", name]
    out, began = measure([sys.executable, *words], env)
    result = json.loads(out.splitlines()[-1])
    lines = [json.loads(x) for x in (folder / name / "history.jsonl").read_text().splitlines()]
    points = [x for x in lines if x["kind"] == "train"]
    at = {p["step"]: p["elapsed_s"] for p in points}
    steps = max(at)
    rate = (steps - WARM) * 4096 / (at[steps] - at[WARM]) if steps > WARM else 0.0
    first = next(x["at"] for x in lines if x["kind"] == "start") + points[0]["elapsed_s"]
    return {
        "rate": rate,
        "memory": max(result["peak_bytes_per_rank"]),
        "start": first - began,
        "loss": points[-1]["loss"],
    }


def torchrun_side(env: dict[str, str]) -> dict[str, Any]:
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "bench.peers.torchrun"]
    out, _ = measure([sys.executable, *words], env)
    result = json.loads(out.splitlines()[-1])
    return {
        "rate": result["examples_per_s"],
        "memory": max(result["peak_bytes_per_rank"]),
        "loss": result["loss"],
    }


def bare_ray_side(env: dict[str, str]) -> dict[str, Any]:
    out, began = measure([sys.executable, "-m", "bench.peers.bare_ray"], env)
    return {"start": json.loads(out.splitlines()[-1])["first_step_at"] - began}


def pairs(count: int, ours: Callable[[int], Any], theirs: Callable[[int], Any], said: str) -> list[tuple[Any, Any]]:
    """`count` pairs, each side first in turn."""
    found = []
    for i in range(count):
        print(f"bench: {said}, pair {i + 1}/{count}", file=sys.stderr, flush=True)
        if i % 2:
            b = theirs(i)
            a = ours(i)
        else:
            a = ours(i)
            b = theirs(i)
        found.append((a, b))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each comparison (default 5)")
    parser.add_argument("--only", choices=("rate", "start"), help="one comparison; memory comes with rate")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the generated data (default 500000)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bound is missed")
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    losses: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="rtrain-bench-") as scratch,
        tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp", ignore_cleanup_errors=True) as ray_temp,
    ):
        folder = Path(scratch)
        data = write(folder / "data", options.rows)
        if options.only != "start":
            env = environment(folder, ray_temp, data, STEPS)
            found = pairs(
                options.pairs, lambda i: rtrain_side(folder, env, f"rate-{i}"), lambda i: torchrun_side(env), "rate"
            )
            ratios["rate"] = [a["rate"] / b["rate"] for a, b in found]
            ratios["memory"] = [a["memory"] / b["memory"] for a, b in found]
            losses = [statistics.median(x["loss"] for x in side) for side in zip(*found, strict=True)]
        if options.only != "rate":
            env = environment(folder, ray_temp, data, 1)
            found = pairs(
                options.pairs, lambda i: rtrain_side(folder, env, f"start-{i}"), lambda i: bare_ray_side(env), "start"
            )
            ratios["start"] = [a["start"] / b["start"] for a, b in found]
    rows = [summarise(name, values, BOUNDS[name]) for name, values in ratios.items()]
    if options.json:
        print(json.dumps({"ratios": [r.to_json() for r in rows], "losses": losses}))
    else:
        print(table(rows))
        if losses:
            print(f"last training loss (the same work on both sides): rtrain {losses[0]:.4f}, by hand {losses[1]:.4f}")
    return 1 if options.check and not all(r.holds for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
