"""What a step costs on a GPU: its time, the host's share, kernels, how often it waits, and bytes beside `plan`.

python -m bench.step                        all of them, on this machine's first GPU; --only NAME, --cpu, --json

dlrm        26 tables of 1,000,000 x 64, batches of 16,384, dense part 512-256 and 1024-1024-512; tables of float32 and
            of 16 bits, products as tf32 and bfloat16
uvm         the same with tables of 100,000 rows: in the GPU's memory, in the host's, and in the host's with a cache
decoder     12 layers, dim 768, 8 x 1,024 tokens: DDP, ZeRO-1, ZeRO-3; tf32 and bfloat16
recipes     recipes/*.py as they are, on one rank

`host` is how long the host takes to ask for a step: what is more than that, the GPU takes. `waits` are calls of a step
in which the host stands still until the GPU has answered. `peak` is what torch had at most, and `plan` over it is what
`rtrain plan` says a rank holds. Four batches, made before and used in turn; nothing is read meanwhile.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.profiler import ProfilerActivity, profile

from bench.asked import parser
from rtrain import (
    AUC,
    DLRM,
    AdamW,
    ByTime,
    Cluster,
    Decoder,
    Dense,
    Duration,
    Evaluation,
    Id,
    Interactions,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schema,
    TableLayout,
    TableOptions,
    TokenLoss,
    Tokens,
)
from rtrain.data.tokens import write_shards
from rtrain.mesh import lay_out
from rtrain.planning import plan
from rtrain.training.agreement import open_data
from rtrain.training.breakdown import Stopwatch
from rtrain.training.ready import Copies, arrived
from rtrain.training.replica import Replica
from rtrain.training.world import join, leave

TABLES, NUMBERS = 26, 13
RECIPES = ("bpr", "dlrm", "hstu", "lightgcn", "sasrec", "two_tower")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
WARM, ROUNDS, BATCHES, SAMPLED = 6, 5, 4, 3
Runs = Iterator[tuple[str, Run]]


def dlrm_of(folder: Path, rows: int, batch: int, **changes: Any) -> Run:
    """Of tables of so many rows, with the model's or the layout's `changes`."""
    path = folder / f"rows-{rows}.parquet"
    if not path.exists():
        draw, count = np.random.default_rng(0), batch * 6
        columns = {f"d{i}": draw.standard_normal(count) for i in range(NUMBERS)}
        columns |= {f"c{i}": (draw.zipf(1.2, count) - 1) % rows for i in range(TABLES)}
        columns |= {"time": np.arange(count), "label": (draw.random(count) < 0.25).astype(float)}
        pq.write_table(pa.table(columns), path)
    numbers, ids = (Dense(name=f"d{i}") for i in range(NUMBERS)), (Id(name=f"c{i}", rows=rows) for i in range(TABLES))
    return Run(
        name="step",
        model=DLRM(dim=64, bottom=(512, 256), top=(1024, 1024, 512), tables=changes.get("tables", ())),
        data=Interactions(
            source=str(path), schema=Schema(features=(*numbers, *ids), time="time"), split=ByTime(valid=0.02, test=0.02)
        ),
        optim=AdamW(lr=1e-3),
        sparse_optim=RowWiseAdagrad(lr=1e-2),
        global_batch=batch,
        duration=Duration(steps=1000),
        parallel=Parallel(
            dense="ddp",
            embeddings="table_wise",
            tables=changes.get("layouts", ()),
            precision=changes.get("precision", "float32"),
        ),
        evaluation=Evaluation(every=Duration(steps=10**9)),
        metrics=(AUC(),),
    )


def _of_few_bits(small: bool) -> tuple[str, ...]:
    return ("bfloat16",) if small else ("tf32", "bfloat16")


def dlrm(folder: Path, small: bool) -> Runs:
    """`small`: as a CPU can look up and hold."""
    rows, batch = (1_000, 1_024) if small else (1_000_000, 16_384)
    for dtype in ("float32", "float16"):
        tables = tuple(TableOptions(table=f"c{i}", dtype=dtype) for i in range(TABLES))  # type: ignore[arg-type]
        yield f"dlrm tables {dtype}", dlrm_of(folder, rows, batch, tables=tables)
    for precision in _of_few_bits(small):
        yield f"dlrm {precision}", dlrm_of(folder, rows, batch, precision=precision)


def uvm(folder: Path, small: bool) -> Runs:
    """Of a GPU alone where it is not in the device's memory."""
    rows, batch = (1_000, 1_024) if small else (100_000, 16_384)
    for kernel in ("fused",) if small else ("fused", "fused_uvm_caching", "fused_uvm"):
        layouts = (TableLayout(table=f"c{i}", embeddings="table_wise", kernel=kernel) for i in range(TABLES))  # type: ignore[arg-type]
        yield f"uvm {kernel}", dlrm_of(folder, rows, batch, layouts=tuple(layouts))


def decoder(folder: Path, small: bool) -> Runs:
    """Its vocabulary is 32,000, or 256."""
    vocab, context = (256, 64) if small else (32_000, 1_024)
    tokens = np.random.default_rng(0).integers(0, vocab, 400_000).astype(np.uint16)
    write_shards(iter([tokens]), folder / "tokens", vocab=vocab, tokenizer="bytes")
    layers, dim, heads = (2, 64, 2) if small else (12, 768, 12)
    layouts: dict[str, dict[str, Any]] = {
        "ddp": {},
        **{f"ddp {precision}": {"precision": precision} for precision in _of_few_bits(small)},
        "zero1": {"dense": "zero", "zero_stage": 1},
        "zero1 bfloat16": {"dense": "zero", "zero_stage": 1, "precision": "bfloat16"},
        "zero3": {"dense": "zero", "zero_stage": 3},
        "zero3 bfloat16": {"dense": "zero", "zero_stage": 3, "precision": "bfloat16"},
    }
    for name, layout in layouts.items():
        yield (
            f"decoder {name}",
            Run(
                name="step",
                model=Decoder(vocab=vocab, layers=layers, dim=dim, heads=heads),
                data=Tokens(source=str(folder / "tokens"), context=context, valid=0.01, test=0.01),
                optim=AdamW(lr=1e-4, clip_norm=1.0),
                global_batch=8,
                duration=Duration(steps=1000),
                parallel=Parallel(**{"dense": "ddp"} | layout),
                evaluation=Evaluation(every=Duration(steps=10**9), monitor="loss"),
                metrics=(TokenLoss(),),
            ),
        )


def recipes(folder: Path, small: bool) -> Runs:
    """Their debug runs, or as they are."""
    for name in RECIPES:
        recipe = importlib.import_module(f"recipes.{name}_movielens")
        run = recipe.debug() if small else recipe.run()
        yield f"recipe {name}", replace(run, parallel=replace(run.parallel, data=1, tensor=1, pipeline=1))


SUITES: dict[str, Callable[[Path, bool], Runs]] = {"dlrm": dlrm, "uvm": uvm, "decoder": decoder, "recipes": recipes}


class Steps:
    """A run's replica on its device, and batches that are there."""

    def __init__(self, run: Run, gpu: bool):
        world = join(gpu=gpu, timeout_s=120)
        self.device = world.device
        self.replica = Replica(run, lay_out(run.parallel, 1), world, stored=None, training=True)
        reader = open_data(run).reader("train", global_batch=run.global_batch, seed=0, rank=0, world_size=1)
        batches, copies = iter(reader), Copies(world.device)
        self.batches = [arrived(copies(next(batches)[0]), world.device)[1] for _ in range(BATCHES)]
        reader.close()
        self.watch = Stopwatch(world.device, sample_steps=0)

    def go(self, count: int) -> None:
        """So many, each with the next one's ids on their way."""
        for step in range(count):
            batch, upcoming = self.batches[step % BATCHES], self.batches[(step + 1) % BATCHES]
            self.replica.train_step(batch, step=step, total_steps=1000, watch=self.watch, upcoming=upcoming)
        self.replica.drop_upcoming()

    def settle(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measured(run: Run, gpu: bool, steps: int) -> dict[str, Any]:
    """A row of the table; seconds, bytes and counts of one step."""
    before = torch.cuda.memory_allocated() if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    of = Steps(run, gpu)
    of.go(WARM)
    of.settle()
    whole, host = list[float](), list[float]()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        of.go(steps)
        host.append((time.perf_counter() - began) / steps)
        of.settle()
        whole.append((time.perf_counter() - began) / steps)
    found = {
        "ms": 1e3 * statistics.median(whole),
        "ms_least": 1e3 * min(whole),
        "ms_most": 1e3 * max(whole),
        "host_ms": 1e3 * statistics.median(host),
    }
    if gpu:
        peak = torch.cuda.max_memory_allocated() - before
        counted = sum(count for kind, count in plan(run).bytes_per_rank[0].items() if kind != "rank")
        found |= {"peak_bytes": peak, "plan_over_peak": counted / peak, **_profiled(of)}
    return found


def _profiled(of: Steps) -> dict[str, Any]:
    """Of a step: kernels, the time in them, and calls that wait."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        of.go(SAMPLED)
        of.settle()
    calls, kernels, busy = Counter[str](), 0, Counter[str]()
    for event in seen.events() or ():
        calls[event.name] += event.name in WAITS
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels += 1
            busy[event.name] += event.time_range.elapsed_us()
    return {
        "kernels": kernels / SAMPLED,
        "busy_ms": sum(busy.values()) / SAMPLED / 1e3,
        "waits": (sum(calls.values()) - 1) / SAMPLED,  # the last is this bench's own
        "longest": {name[:60]: us / SAMPLED / 1e3 for name, us in busy.most_common(5)},
    }


def told(name: str, row: dict[str, Any]) -> str:
    """A line of the table."""
    line = f"{name:<22}{row['ms']:>9.2f} ms ({row['ms_least']:.2f} to {row['ms_most']:.2f}), host {row['host_ms']:.2f}"
    if "kernels" in row:
        line += (
            f", GPU busy {row['busy_ms']:.2f}, {row['kernels']:.0f} kernels, {row['waits']:.1f} waits, "
            f"peak {row['peak_bytes'] / 2**20:,.0f} MiB, plan / peak {row['plan_over_peak']:.3f}"
        )
    return line


def asked() -> argparse.Namespace:
    of = parser("bench.step", __doc__)
    of.add_argument("--only", choices=SUITES, help="one of them")
    of.add_argument("--cpu", action="store_true", help="smaller ones on the CPU: that the bench itself runs")
    of.add_argument("--steps", type=int, default=20, help="of a round; there are 5")
    of.add_argument("--json", action="store_true", help="one line of JSON a row")
    return of.parse_args()


if __name__ == "__main__":
    options = asked()
    if not (options.cpu or torch.cuda.is_available()):
        raise SystemExit("bench.step: there is no GPU here. Give --cpu for smaller ones on the CPU")
    with tempfile.TemporaryDirectory() as scratch:
        for suite in [options.only] if options.only else SUITES:
            for name, run in SUITES[suite](Path(scratch), options.cpu):
                placed = replace(run, cluster=Cluster(workers=1, gpus_per_worker=int(not options.cpu)), storage=scratch)  # type: ignore[arg-type]
                row = measured(placed, not options.cpu, options.steps)
                leave()
                print(json.dumps({"name": name, **row}) if options.json else told(name, row), flush=True)
