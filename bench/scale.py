"""What data and tables cost at sizes that no machine here has, from what a row, a row group, a rank cost here.

python -m bench.scale                   measures the unit costs (minutes), then prints docs/scale.md's tables
python -m bench.scale --step-ms 4       the same for steps of 4 ms
python -m bench.scale --json            the unit costs alone

Rows are the bench's: 13 numbers, 26 ids, a time, a label. Everything else is multiplication: see `projected`.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

from bench import reading
from bench.asked import parser
from bench.data import BATCH, DIM, TABLES, TRAIN_ROWS, write
from rtrain import RowWiseAdagrad
from rtrain.data.order import Order
from rtrain.data.parquet import ParquetRows
from rtrain.data.split import refuse_disorder
from rtrain.ledger.samples import Samples
from rtrain.mesh import Parallel
from rtrain.metrics.curves import AUC, ScorePart
from rtrain.nn.tables import Table
from rtrain.parallel.table_planning import plan_tables

RANKS = (64, 512, 4096)
DATA_TB = (1, 100)
GROUP_ROWS = 65_536
"""Rows of a row group, as `data.window_rows` asks for; those that are measured are smaller, of as many columns."""
TABLES_GB, STATE = 100, 1.0 / DIM
"""Weights of all tables, and the optimizer state a byte of weights of row-wise Adagrad: one number a row."""
READ_GB_S, WRITE_GB_S = 0.3, 0.2
"""Of one rank to and from the storage, of 8 ranks on a node with 25 Gb/s."""
TESTED = 0.02
"""Share of the rows that one evaluation scores."""


@dataclass(frozen=True)
class Costs:
    """CPU seconds and bytes of one thing each, on one core of this machine."""

    row_read_s: float
    """Decode, check, encode and batch a row that does not stay in memory."""
    row_file_bytes: float
    """In the compressed file."""
    group_open_s: float
    """Open a row group's part of a footer."""
    group_bytes: float
    """Memory that it then takes."""
    group_order_s: float
    """Its place in the epoch's order, over as many strata as there are."""
    row_checked_s: float
    """See that its time is not before the row's above it."""
    row_ledger_s: float
    """Put a row's number into the ledger."""
    row_ledger_bytes: float
    """In a checkpoint, in the middle of an epoch."""
    row_scored_s: float
    """Sort it by score, for AUC and what else needs the curve."""
    plan_s: tuple[tuple[int, float], ...]
    """Ranks, and seconds to place 26 tables on so many."""


def measured(folder: Path) -> Costs:
    """Minutes, most of them for the largest plan."""
    os.environ["BENCH_STORAGE"] = str(folder)
    source = write(folder / "data", group=reading.GROUP)
    read_s = reading.seconds(str(source), 0, 1) / TRAIN_ROWS
    stored = pq.read_metadata(source)
    file_bytes = source.stat().st_size / stored.num_rows
    rows = ParquetRows(str(source))
    checked_s = _cpu(lambda: refuse_disorder(rows, "time"), 3) / stored.num_rows
    open_s, group_bytes = _of_group(folder, source)
    blocks = [(at * 64, at * 64 + 64) for at in range(1 << 15)]
    order = Order(blocks, seed=0, window_rows=1 << 16)
    order_s = _cpu(lambda: Order(blocks, seed=0, window_rows=1 << 16), 1) / len(blocks)
    order_s += _cpu(lambda: [order.windows(0, q) for q in range(order.strata)], 1) / len(blocks)
    some = 1 << 24
    half = np.random.default_rng(0).permutation(some)[: some // 2]
    kept = Samples()
    ledger_s = _cpu(lambda: [kept.add(part) for part in np.split(half, 8)], 1) / len(half)
    scored_s = _of_scores(1 << 21)
    return Costs(
        row_read_s=read_s, row_file_bytes=file_bytes, group_open_s=open_s, group_bytes=group_bytes,
        group_order_s=order_s, row_checked_s=checked_s, row_ledger_s=ledger_s,
        row_ledger_bytes=sum(map(len, kept.to_bytes())) / len(half), row_scored_s=scored_s,
        plan_s=tuple((ranks, _planned(ranks)) for ranks in (8, 16, 32, 64)),
    )  # fmt: skip


def _cpu(work: Callable[[], object], times: int) -> float:
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def _of_group(folder: Path, source: Path) -> tuple[float, float]:
    """Seconds and bytes of a row group of a file that has thousands."""
    many, count = folder / "many.parquet", 4000
    pq.write_table(pq.read_table(source).slice(0, 4 * count), many, row_group_size=4)
    opened = [ParquetRows(str(many))]  # imports and buffers are not counted
    process = psutil.Process()
    before, began = process.memory_info().rss, time.process_time()
    opened += [ParquetRows(str(many)) for _ in range(3)]
    took = time.process_time() - began
    grown = process.memory_info().rss - before
    return took / 3 / count, grown / 3 / count


def _of_scores(rows: int) -> float:
    random = np.random.default_rng(0)
    columns = {"logits": random.standard_normal(rows), "labels": (random.random(rows) < 0.2).astype(np.float64)}
    metric = AUC()
    return _cpu(lambda: metric.of_parts(metric.of_part(ScorePart.of(columns))), 3) / rows


def _planned(ranks: int) -> float:
    per_table = TABLES_GB * 10**9 // (4 * DIM * TABLES)
    tables = tuple(Table(name=f"t{n}", rows=per_table, dim=DIM, features=(f"c{n}",)) for n in range(TABLES))
    began = time.process_time()
    plan_tables(
        tables, Parallel(), RowWiseAdagrad(lr=0.1), world_size=ranks, local_world_size=8, device="cuda",
        batch_per_rank=BATCH, memory_bytes_per_rank=70 * 10**9,
    )  # fmt: skip
    return time.process_time() - began


def planned_s(costs: Costs, ranks: int) -> float:
    """Seconds at any number of ranks: a power law through the last two that were measured."""
    (fewer, less), (more, most) = costs.plan_s[-2:]
    return float(most * (ranks / more) ** (math.log(most / less) / math.log(more / fewer)))


@dataclass(frozen=True)
class Projected:
    """Of one rank, at one size."""

    cores: float
    """That reading keeps busy."""
    storage: float
    """Share of `READ_GB_S` that reading takes; each row once an epoch, and a quarter more (`order.MOST_READ`)."""
    open_s: float
    """Until the data are open: all row groups' footers and their order, on each rank, on one core."""
    open_gb: float
    """What they then take."""
    checked_s: float
    """The order of time, at a run's first start, in the driver alone, on one core."""
    plan_s: float
    """On rank 0; the others wait."""
    checkpoint_s: float
    """A rank's part of the tables and their state, at `WRITE_GB_S`."""
    ledger_s: float
    """Of rank 0, to write the ledger of half an epoch at `WRITE_GB_S`."""
    ledger_gb: float
    """That."""
    metrics_s: float
    """A rank's part of the rows that an evaluation scores."""


def projected(costs: Costs, *, ranks: int, data_bytes: float, step_s: float) -> Projected:
    """Everything is one cost times how many there are."""
    rows = data_bytes / costs.row_file_bytes
    groups = rows / GROUP_ROWS
    ledger = costs.row_ledger_bytes * rows / 2
    return Projected(
        cores=BATCH * costs.row_read_s / step_s,
        storage=1.25 * BATCH * costs.row_file_bytes / step_s / (READ_GB_S * 1e9),
        open_s=groups * (costs.group_open_s + costs.group_order_s),
        open_gb=groups * costs.group_bytes / 1e9,
        checked_s=rows * costs.row_checked_s,
        plan_s=planned_s(costs, ranks),
        checkpoint_s=TABLES_GB * (1 + STATE) / ranks / WRITE_GB_S,
        ledger_s=ledger / (WRITE_GB_S * 1e9),
        ledger_gb=ledger / 1e9,
        metrics_s=TESTED * rows / ranks * costs.row_scored_s,
    )


def table(costs: Costs, step_s: float) -> str:
    """Markdown: a column for each size."""
    sizes = [(tb, ranks) for tb in DATA_TB for ranks in RANKS]
    found = [projected(costs, ranks=ranks, data_bytes=tb * 1e12, step_s=step_s) for tb, ranks in sizes]
    lines = [
        "| | " + " | ".join(f"{tb} TB, {ranks:,} ranks" for tb, ranks in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    epochs = [tb * 1e12 / costs.row_file_bytes / (ranks * BATCH) * step_s / 3600 for tb, ranks in sizes]
    lines.append("| an epoch, hours | " + " | ".join(f"{hours:,.1f}" for hours in epochs) + " |")
    for name, text in SAID.items():
        lines.append(f"| {text} | " + " | ".join(f"{getattr(one, name):,.3g}" for one in found) + " |")
    return "\n".join(lines)


SAID = {
    "cores": "reading: cores a rank keeps busy",
    "storage": f"reading: share of {READ_GB_S} GB/s a rank",
    "open_s": "opening, each rank: s",
    "open_gb": "opening, each rank: GB kept",
    "checked_s": "order of time, once, one core: s",
    "plan_s": "planning on rank 0: s",
    "checkpoint_s": f"checkpoint of {TABLES_GB} GB tables: s",
    "ledger_gb": "ledger in the middle of an epoch: GB",
    "ledger_s": "ledger, written by rank 0: s",
    "metrics_s": f"metrics of {TESTED:.0%} of the rows: s a rank",
}


def main() -> None:
    """Print."""
    asking = parser("bench.scale", __doc__)
    asking.add_argument("--step-ms", type=float, default=25.0, help=f"a step of {BATCH} rows a rank; left out: 25")
    asking.add_argument("--json", action="store_true", help="print the unit costs as JSON, and no table")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        costs = measured(Path(folder))
    if asked.json:
        print(json.dumps(asdict(costs)))
        return
    for name, value in asdict(costs).items():
        print(f"{name}: {value}")
    print(f"\nsteps of {asked.step_ms:g} ms, {BATCH} rows a rank\n\n{table(costs, asked.step_ms / 1e3)}")


if __name__ == "__main__":
    main()
