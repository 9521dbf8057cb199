"""Spawns gloo worlds for the parity tests, and the tiny job that they train.

Shape legend: B rows of a rank's share.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.writing import save
from rtrain.data.interactions import Interactions
from rtrain.mesh import Parallel, lay_out
from rtrain.models.dlrm import DLRM
from rtrain.models.ranking import RankingConfig
from rtrain.optim import AdamW, SparseOptim
from rtrain.run import Cluster, Run
from rtrain.schema import Batch, Dense, Id, IdList, Jagged, Label, Schema
from rtrain.training import processes
from rtrain.training.breakdown import Stopwatch
from rtrain.training.replica import Replica
from rtrain.training.world import join

SCHEMA = Schema(
    features=(
        Dense(name="a"),
        Id(name="user", rows=50),
        Id(name="item", rows=71),  # odd, so that row-wise shards differ in size
        IdList(name="seen", rows=71, table="item"),
    ),
    group="user",
)
TWO_LABELS = replace(SCHEMA, more_labels=(Label(name="second", optional=True),))
ROWS = 33  # odd, so that the shares of two ranks differ by one and padding is needed
STEPS = 20
DEADLINE_S = 600.0
TINY = DLRM(dim=8, bottom=(8,), top=(16,))
DENSE_OPTIM = AdamW(lr=3e-2, eps=1e-5, clip_norm=0.5)  # eps: see test_retrieval.PARITY


Tables = dict[str, list[list[float]]]
"""Table -> its weights [rows, dim], wherever they lay; lists, so that a world can send them home."""


def global_batch(step: int, schema: Schema = SCHEMA) -> Batch:
    """The rows of one step, the same in every world; a second label is there for two rows of three."""
    g = torch.Generator().manual_seed(step % 5)
    lengths = torch.randint(0, 4, (ROWS,), generator=g)
    seen = torch.randint(0, 71, (int(lengths.sum()),), generator=g)
    user, item = (torch.randint(0, rows, (ROWS,), generator=g) for rows in (50, 71))
    dense = torch.randn(ROWS, 1, generator=g)
    label = (dense[:, 0] + torch.randn(ROWS, generator=g) > user % 2).float()
    if len(schema.labels) == 2:
        second = (dense[:, 0] + item % 3 > 1).float().where(torch.arange(ROWS) % 3 > 0, torch.nan)
        label = torch.stack([label, second], dim=1)
    return Batch(
        dense=dense,
        ids=Jagged(
            ("user", "item", "seen"),
            torch.cat([user, item, seen]),
            torch.cat([torch.ones(2 * ROWS, dtype=torch.int32), lengths.int()]),
        ),
        label=label,
        group=user,
        row=torch.arange(ROWS),
        global_rows=ROWS,
    )


def share(batch: Batch, rank: int, world: int) -> Batch:
    """A rank's rows, padded to as many as the others have."""
    begin, end = ROWS * rank // world, ROWS * (rank + 1) // world
    lengths = batch.ids.lengths.view(3, ROWS)
    values = torch.split(batch.ids.values, lengths.sum(1).tolist())
    mine = []
    for row, of_feature in zip(lengths, values, strict=True):
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), row.cumsum(0)])
        mine.append(of_feature[int(starts[begin]) : int(starts[end])])
    return Batch(
        dense=batch.dense[begin:end],
        ids=Jagged(batch.ids.keys, torch.cat(mine), lengths[:, begin:end].flatten()),
        label=batch.label[begin:end],
        group=batch.group[begin:end],
        row=batch.row[begin:end],
        global_rows=ROWS,
    ).padded(-(-ROWS // world))


def train(
    parallel: Parallel,
    sparse: SparseOptim,
    *,
    save_to: str = "",
    load_from: str = "",
    steps: tuple[int, int] = (0, STEPS),
    save_at: int = 10,
    config: RankingConfig = TINY,
    schema: Schema = SCHEMA,
    spoil: bool = False,
    after: Callable[[Replica], None] = lambda replica: None,
) -> list[float]:
    """Train a tiny model in the present world; the loss of each global batch, the same on all ranks.

    `after`: called with the replica when the last step is done.
    """
    world = join(gpu=False, timeout_s=DEADLINE_S)
    run = Run(
        name="tiny",
        model=config,
        data=Interactions(source="not read", schema=schema),
        optim=DENSE_OPTIM,
        sparse_optim=sparse,
        parallel=parallel,
        global_batch=ROWS,
        cluster=Cluster(memory_gb_per_worker=1.0),
    )
    stored = None
    if load_from:
        stored = Stored(CheckpointFolders(load_from).of(save_at), save_at)
        stored.verify()
    mesh = lay_out(parallel, world.size)
    mine = mesh.share(world.rank, run.blueprint.dealt)
    replica = Replica(run, mesh, world, stored=stored, training=True)
    if spoil:
        replica.carry.replica_ranks = 1  # a wrong factor
    watch = Stopwatch(world.device, sample_steps=0)
    losses = []
    for step in range(*steps):
        if step == save_at and save_to:
            save(CheckpointFolders(save_to), step, replica.chunks(), {})
        batch = share(global_batch(step, schema), mine.index, mine.count)
        loss = replica.train_step(batch, step=step, total_steps=STEPS, watch=watch)
        dist.all_reduce(loss)
        losses.append(float(loss) / ROWS)
    after(replica)
    return losses


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
