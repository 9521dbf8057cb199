"""Spawns gloo worlds for the parity tests, and the tiny job on rows that they train."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.writing import save
from rtrain.data.interactions import Interactions
from rtrain.data.split import ByTime
from rtrain.duration import Duration
from rtrain.mesh import Parallel
from rtrain.models.dlrm import DLRM
from rtrain.models.ranking import RankingConfig
from rtrain.optim import SGD, AdamW, SparseOptim
from rtrain.run import Checkpoint, Cluster, Run
from rtrain.schema import Dense, Id, IdList, IdSequence, Label, Schema
from rtrain.training import processes
from rtrain.training.replica import Replica
from rtrain.training.trace import trace

SCHEMA = Schema(
    features=(
        Dense(name="a"),
        Id(name="user", rows=50),
        Id(name="item", rows=71),  # odd, so that row-wise shards differ in size
        IdList(name="seen", rows=71, table="item", max_length=4),
    ),
    group="user",
    time="at",
)
TWO_LABELS = replace(SCHEMA, more_labels=(Label(name="second", optional=True),))
TAUGHT = replace(SCHEMA, teacher="teacher")
TIMED = replace(
    SCHEMA, features=(*SCHEMA.features[:-1], IdSequence(name="seen", rows=71, table="item", max_length=4, times="when"))
)
ROWS = 33  # odd, so that the shares of two ranks differ by one and padding is needed
EPOCH = 5
"""Steps after which all training rows were read once."""
STEPS, SAVED = 20, 10
DEADLINE_S = 600.0
TINY = DLRM(dim=8, bottom=(8,), top=(16,))
DENSE_OPTIM = AdamW(lr=3e-2, eps=1e-5, clip_norm=0.5)  # eps: see test_retrieval.PARITY


Tables = dict[str, list[list[float]]]
"""Table -> its weights [rows, dim], wherever they lay; lists, so that a world can send them home."""


def write_rows(path: str) -> str:
    """Rows of all schemas here as Parquet, three quarters to train on; a third lacks the second label, a quarter has no
    teacher's logit. `when`: of each that was seen."""
    draw, count = np.random.default_rng(0), ROWS * EPOCH * 4 // 3
    user, item, a = draw.integers(0, 50, count), draw.integers(0, 71, count), draw.normal(size=count)
    lengths, of_time = draw.integers(0, 4, count), np.random.default_rng(1)
    columns = {
        "a": a,
        "user": user,
        "item": item,
        "seen": [draw.integers(0, 71, length).tolist() for length in lengths],
        "when": [np.sort(at - of_time.integers(0, 99, length)).tolist() for at, length in enumerate(lengths)],
        "at": np.arange(count),
        "label": (a + draw.normal(size=count) > user % 2).astype(float),
        "second": pa.array((a + item % 3 > 1).astype(float), mask=np.arange(count) % 3 == 0),
        "teacher": pa.array(3 * a - user % 2 + draw.normal(size=count), mask=np.arange(count) % 4 == 1),
    }
    pq.write_table(pa.table(columns), path, row_group_size=70)
    return path


def tiny(
    source: str, parallel: Parallel, sparse: SparseOptim, *, config: RankingConfig = TINY, schema: Schema = SCHEMA
) -> Run:
    """A ranking model on the rows that `write_rows` left at `source`."""
    return Run(
        name="tiny",
        model=config,
        data=Interactions(source=source, schema=schema, split=ByTime(valid=0.125, test=0.125)),
        optim=replace(DENSE_OPTIM, clip_norm=0.05) if sparse.clip_with_dense else DENSE_OPTIM,
        sparse_optim=sparse,
        parallel=parallel,
        global_batch=ROWS,
        duration=Duration(steps=STEPS),
        cluster=Cluster(memory_gb_per_worker=1.0),
    )


def crowded(batch: int) -> Run:
    """Four tables of 1 MiB, one of which is read by lists, on two ranks of 4 MiB; nothing is read."""
    ids = tuple(Id(name=name, rows=2**14) for name in "abc")
    schema = Schema(features=(Dense(name="x"), IdList(name="long", rows=2**14, mean_length=10.0), *ids))
    run = tiny(
        "ml-100k", Parallel(embeddings="table_wise", dense="ddp"), SGD(), schema=schema,
        config=DLRM(dim=16, bottom=(8,), top=(64, 256, 16)),
    )  # fmt: skip
    return replace(
        run, global_batch=batch, checkpoint=Checkpoint(background=False),
        cluster=Cluster(workers=2, memory_gb_per_worker=4 / 1024),
    )  # fmt: skip


def train(
    run: Run,
    *,
    save_to: str = "",
    load_from: str = "",
    before_step: Callable[[int, Replica], None] = lambda step, replica: None,
) -> list[float]:
    """Train in the present world; the loss of each global batch, the same on all ranks.

    `save_to`: a folder for a checkpoint of step `SAVED`; `load_from`: one from which to go on behind that step.
    """

    def before(step: int, replica: Replica) -> None:
        before_step(step, replica)
        if save_to and step == SAVED:
            save(CheckpointFolders(save_to), step, replica.chunks(), {})

    stored = Stored(CheckpointFolders(load_from).of(SAVED), SAVED) if load_from else None
    if stored:
        stored.verify()
    return trace(run, steps=STEPS, stored=stored, before_step=before).losses


def whole_tables(replica: Replica) -> Tables:
    """The tables' weights of all ranks put together; a collective.

    A rectangle that no rank has is nan, and one that two have is an error.
    """
    assert replica.tables is not None
    mine = [(c.name, c.shape, c.offsets, c.data) for c in replica.tables.chunks() if c.name.startswith("model.")]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    found: dict[str, torch.Tensor] = {}
    for name, shape, (row, column), data in (chunk for of_rank in everyone for chunk in of_rank):
        table = found.setdefault(name.split(".")[-2], torch.full(shape, torch.nan))
        here = table[row : row + data.shape[0], column : column + data.shape[1]]
        assert here.shape == data.shape and here.isnan().all(), f"{name} {row}, {column}: beyond, or there twice"
        here.copy_(data)
    return {name: table.tolist() for name, table in found.items()}


Case = tuple[str, dict[str, Any]]


def run_cases(world: int, cases: list[Case]) -> dict[str, list[float]]:
    """Name -> losses of each case, trained one after the other in one spawned world."""
    found: dict[str, list[float]] = in_world(world, _train_cases, cases)[0]
    return found


def _train_cases(cases: list[Case]) -> dict[str, list[float]]:
    return {name: train(**arguments) for name, arguments in cases}


def in_world(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As rtrain's own, with a deadline that only keeps a world that hangs from hanging the tests."""
    return processes.in_world(size, work, *arguments, deadline_s=DEADLINE_S)
