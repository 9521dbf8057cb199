"""One run of one side, in a fresh process; what it measured as plain numbers."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.data import BATCH
from rtrain.parallel.extension import compiled

ROOT = Path(__file__).parents[1]
LOG_EVERY = 10
STEPS, WARM = 240, 40
"""The rate is of the steps after `WARM`, on rank 0's own clock."""
DENSE_STEPS, DENSE_WARM, DENSE_LOG = 400, 100, 50
"""Of the decoder: steps of a few milliseconds, so more of them."""
HISTORY_STEPS, HISTORY_WARM, HISTORY_LOG = 12, 2, 2
"""Of histories, whose padded steps take a second or more; an epoch is ten steps."""
SIDE_S = 1800.0
"""Seconds after which a run of one side is stuck; each takes a minute or two."""
LAST_POINTS = 5
"""Points of the loss curve that are averaged for the comparison of losses."""

Measured = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where a bench works: its data, its runs, and Ray's own folder (short: it holds sockets)."""

    data: Path
    runs: Path
    ray_temp: Path

    def environment(self, steps: int) -> dict[str, str]:
        """The same for both sides."""
        return os.environ | {
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "PYTHONPATH": str(ROOT),
            "RTRAIN_RAY_TEMP_DIR": str(self.ray_temp),
            "BENCH_DATA": str(self.data),
            "BENCH_STEPS": str(steps),
            "BENCH_LOG_EVERY": str(LOG_EVERY),
            "BENCH_STORAGE": str(self.runs),
        }


def job(place: Place, *, steps: int, name: str, overlap: bool = True) -> Measured:
    """rtrain's own command, with its own Ray: two workers."""
    words = ["bench/job.py", "train", "--json", "--storage", str(place.runs), "--name", name]
    words += ["--parallel.overlap", str(overlap).lower()]
    said, began = _last_line(words, place.environment(steps))
    points = _history(place, name)
    loop_began = next(x["at"] for x in _lines(place, name) if x["kind"] == "start")
    first = {"start": loop_began + points[0]["at"] - began} if steps == 1 else curve(points)
    return first | {"memory": max(said["peak_bytes_per_rank"])}


def job_alone(place: Place, *, steps: int, name: str) -> Measured:
    """The same job in one process, without Ray."""
    words = ["bench/job.py", "train", "--json", "--launcher", "inline", "--storage", str(place.runs), "--name", name]
    _last_line(words, place.environment(steps))
    return curve(_history(place, name))


def serving(place: Place, rounds: int) -> tuple[list[Measured], list[Measured]]:
    """One row a request, asked of `rtrain serve` and of a bare deployment beside it; `bench.serve`."""
    said, _ = _last_line(["-m", "bench.serve", "--rounds", str(rounds)], place.environment(20))
    phases = said["phases"]
    names = {"cpu_ms": "cpu", "p50_ms": "p50", "p99_ms": "p99"}
    ours, theirs = ([{names[key]: of[key] for key in names} for of in phases[side]] for side in ("rtrain", "bare"))
    for mine, its, by_hand in zip(ours, theirs, phases["by_hand"], strict=True):
        mine["serve_by_hand"], its["serve_by_hand"] = mine["cpu"], by_hand["cpu_ms"]
    return ours, theirs


def programs(place: Place, count: int) -> tuple[list[Measured], list[Measured]]:
    """Whole predicts of one row by the same export, compiled and by torch's modules; `bench.programs`."""
    said, _ = _last_line(["-m", "bench.programs", "--pairs", str(count), "--only", "DLRM"], place.environment(20))
    taken = said["DLRM"]["predict, 1"]["pairs_ms"]
    ours, theirs = ([{"rate": 1e3 / ms} for ms in taken[side]] for side in ("compiled", "eager"))
    return ours, theirs


def nearest(place: Place, count: int) -> tuple[list[Measured], list[Measured]]:
    """The best 10 of a million items by an index, beside a bare product and top-k, and 2 ms; `bench.index`."""
    said, _ = _last_line(["-m", "bench.index", "--items", "1000000", "--pairs", str(count)], place.environment(20))
    taken = said["pairs_ms"]
    ours = [{"index": ms, "index_bare": ms, "index_recall": said["recall"]} for ms in taken["index"]]
    theirs = [{"index": 2.0, "index_bare": ms, "index_recall": 1.0} for ms in taken["bare"]]
    return ours, theirs


def stall(place: Place, *, name: str, background: bool) -> Measured:
    """Seconds that one process's training waits for its checkpoints, one every 40 steps; the last one apart."""
    words = ["bench/job.py", "train", "--json", "--launcher", "inline", "--storage", str(place.runs), "--name", name]
    words += ["--checkpoint.every.steps", "40", "--checkpoint.background", str(background).lower()]
    _last_line(words, place.environment(STEPS))
    return {"stall": json.loads((place.runs / name / "result.json").read_text())["breakdown"]["checkpoint"]}


def handwritten(place: Place, *, steps: int, workers: int) -> Measured:
    """The plain script under torchrun."""
    said, _ = _last_line([*_torchrun(workers), "-m", "bench.peers.handwritten"], place.environment(steps))
    return curve(said["points"]) | {"memory": max(said["peak_bytes_per_rank"])}


def embedding_bags(place: Place, *, steps: int) -> Measured:
    """Plain torch in one process."""
    return curve(_last_line(["-m", "bench.peers.embedding_bags"], place.environment(steps))[0]["points"])


def bare_ray(place: Place) -> Measured:
    """The plain TorchTrainer."""
    said, began = _last_line(["-m", "bench.peers.bare_ray"], place.environment(1))
    return {"start": said["first_step_at"] - began}


def decoder(place: Place, *, name: str, workers: int) -> Measured:
    """The decoder's recipe without Ray: in one process with eager torch, or under torchrun with ZeRO-1."""
    launcher = "torchrun" if workers > 1 else "inline"
    options: dict[str, Any] = {"launcher": launcher, "duration.steps": DENSE_STEPS, "name": name, "storage": place.runs}
    options |= {"log_every_steps": DENSE_LOG, "evaluation.every.steps": 10**9, "checkpoint.every.steps": 10**9}
    options |= {"parallel.dense": "zero" if workers > 1 else "ddp", "tracking.to": "jsonl", "handoff.export": "false"}
    words = [w for key, value in options.items() for w in (f"--{key}", str(value))]
    start = _torchrun(workers) if workers > 1 else []
    _last_line([*start, "recipes/gpt_stdlib.py", "train", "--json", *words], place.environment(DENSE_STEPS))
    at = {x["step"]: x["at"] for x in _history(place, name)}
    return {"rate": (DENSE_STEPS - DENSE_WARM) / (at[DENSE_STEPS] - at[DENSE_WARM])}


def decoder_by_hand(place: Place, *, workers: int) -> Measured:
    """The same decoder in a plain torch loop, or under torchrun with bare DeepSpeed."""
    # rtrain's compiled extension, which its own side has built before: in torch's own folder, which all environments
    # share, the lock of a build that was killed is waited on for ever.
    env = place.environment(DENSE_STEPS) | {"BENCH_WARM": str(DENSE_WARM), "TORCH_EXTENSIONS_DIR": str(compiled())}
    peer = (
        [*_torchrun(workers), "-m", "bench.peers.deepspeed_decoder"] if workers > 1 else ["-m", "bench.peers.decoder"]
    )
    return {"rate": _last_line(peer, env)[0]["steps_per_s"]}


def catalogue(place: Place, way: str) -> Measured:
    """Users/s that the full catalogue is ranked for."""
    return {"rate": _last_line(["-m", "bench.catalogue", way], place.environment(0))[0]["users_per_s"]}


def gauc(place: Place, way: str) -> Measured:
    """Groups/s that GAUC is measured of."""
    return {"rate": _last_line(["-m", "bench.gauc", way], place.environment(0))[0]["groups_per_s"]}


def reading(place: Place, world: int) -> Measured:
    """CPU seconds of a step's reading, and rows/s of CPU time, of the slowest rank."""
    said, _ = _last_line(["-m", "bench.reading", str(world)], place.environment(0))
    return {"step": said["step_s"], "rate": said["rows_per_s"]}


def step_by_hand(place: Place) -> Measured:
    """Seconds of a step of the plain script in one process."""
    return {"step": BATCH / handwritten(place, steps=STEPS, workers=1)["rate"]}


def first_weights(place: Place) -> Measured:
    """GB/s of CPU time that a shard of a fresh table is filled at."""
    return {"rate": _last_line(["-m", "bench.first_weights"], place.environment(0))[0]["bytes_per_s"] / 1e9}


def histories(place: Place, *, name: str, attention: str) -> Measured:
    """Steps/s of HSTU in one process without Ray, and the loss of the last steps."""
    env = place.environment(HISTORY_STEPS) | {"BENCH_LOG_EVERY": str(HISTORY_LOG)}
    words = ["bench/histories.py", "train", "--json", "--launcher", "inline", "--storage", str(place.runs)]
    _last_line([*words, "--name", name, "--model.attention", attention], env)
    points = _history(place, name)
    at = {p["step"]: p["at"] for p in points}
    rate = (HISTORY_STEPS - HISTORY_WARM) / (at[HISTORY_STEPS] - at[HISTORY_WARM])
    return {"rate": rate, "last_loss": points[-1]["loss"]}


def sasrec(place: Place, *, name: str) -> Measured:
    """Steps/s of SASRec in one process without Ray."""
    env = place.environment(DENSE_STEPS) | {"BENCH_LOG_EVERY": str(DENSE_LOG), "BENCH_MODEL": "sasrec"}
    words = ["bench/histories.py", "train", "--json", "--launcher", "inline", "--storage", str(place.runs)]
    _last_line([*words, "--name", name], env)
    points = _history(place, name)
    at = {p["step"]: p["at"] for p in points}
    rate = (DENSE_STEPS - DENSE_WARM) / (at[DENSE_STEPS] - at[DENSE_WARM])
    return {"rate": rate, "last_loss": points[-1]["loss"]}


def sasrec_by_hand(place: Place) -> Measured:
    """The same in a plain torch loop."""
    env = place.environment(DENSE_STEPS) | {"BENCH_WARM": str(DENSE_WARM)}
    said, _ = _last_line(["-m", "bench.peers.sasrec"], env)
    return {"rate": said["steps_per_s"], "last_loss": said["last_loss"]}


def zero_bytes(place: Place, stage: int) -> Measured:
    """Bytes of a rank of two, and what the ZeRO paper's formula gives."""
    env = place.environment(0) | {"BENCH_STAGE": str(stage)}
    said, _ = _last_line([*_torchrun(2), "-m", "bench.zero_bytes"], env)
    return {"held": said["held"], "ideal": said["ideal"]}


def _torchrun(workers: int) -> list[str]:
    return ["-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone"]


def _lines(place: Place, name: str) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (place.runs / name / "history.jsonl").read_text().splitlines()]


def _history(place: Place, name: str) -> list[dict[str, Any]]:
    return [x | {"at": x["elapsed_s"]} for x in _lines(place, name) if x["kind"] == "train"]


def curve(points: list[dict[str, float]]) -> Measured:
    """Examples/s of the steps after `WARM`, and the loss at the end, from points with step, at (seconds) and loss."""
    at = {p["step"]: p["at"] for p in points}
    last = max(at)
    return {
        "rate": (last - WARM) * BATCH / (at[last] - at[WARM]),
        "loss": sum(p["loss"] for p in points[-LAST_POINTS:]) / LAST_POINTS,
    }


def _last_line(words: list[str], env: dict[str, str]) -> tuple[dict[str, Any], float]:
    """Run Python with `words`; its last line as JSON, and the moment it was started."""
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, *words], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started = psutil.Process(process.pid)
    try:
        out, errors = process.communicate(timeout=SIDE_S)
    except BaseException:
        # torchrun's ranks and Ray's processes are children of children, and go on when their parent is killed.
        for one in [*started.children(recursive=True), started]:
            with suppress(psutil.Error):
                one.kill()
        process.communicate(timeout=60)
        raise
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(words)} failed:\n{out[-2000:]}\n{errors[-4000:]}")
    return json.loads(out.splitlines()[-1]), began
