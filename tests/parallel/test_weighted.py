"""Squared error of weighted rows at one rank and at two: the losses of plain torch, whoever holds the heavy rows.

The control computes sum(w * (f - y) ** 2) / sum(w) over the global batch and knows no rank. A rank that divided by its
own weights, or by rows, would be off by 1e-1: the weights of a batch's halves differ by a factor of several.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rtrain.batch import Batch
from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.mesh import Parallel
from rtrain.metrics import RMSE
from rtrain.optim import RowWiseAdagrad
from rtrain.run import Cluster, Evaluation, Run
from rtrain.schema import Dense, Id, Label, Schema
from rtrain.training.trace import trace
from tests.parallel.plain import plain_rows
from tests.parallel.worlds import DENSE_OPTIM, ROWS, TINY, in_world

PARITY = 1e-5  # as a share of losses of 1 to 20; seen here: 3e-7
STEPS = 12
SCHEMA = Schema(features=(Dense(name="x"), Id(name="item", rows=30)), label=Label(kind="number"), weight="w", time="at")
LAYOUTS = {
    "one": (1, Parallel(dense="ddp")),
    "two": (2, Parallel(dense="ddp", embeddings="row_wise")),
    "three": (3, Parallel(dense="ddp", embeddings="row_wise")),
    "zero1 x2": (2, Parallel(zero_stage=1, microbatches=2)),
}


WINDOWS = {"a window": 1 << 20, "strata": 50}
"""Rows in memory: all of them on each rank, or four strata, of which a rank reads its own alone."""


def run_of(source: str, parallel: Parallel, window_rows: int) -> Run:
    return Run(
        name="weighted",
        model=TINY,
        data=Interactions(source=source, schema=SCHEMA, window_rows=window_rows),
        optim=DENSE_OPTIM,
        sparse_optim=RowWiseAdagrad(lr=0.05),
        parallel=parallel,
        global_batch=ROWS,
        duration=Duration(epochs=9),
        evaluation=Evaluation(monitor="rmse"),
        metrics=(RMSE(),),
        cluster=Cluster(memory_gb_per_worker=1.0),
    )


def traces(source: str, layouts: dict[str, Parallel], window_rows: int) -> dict[str, list[float]]:
    return {name: trace(run_of(source, layout, window_rows), steps=STEPS).losses for name, layout in layouts.items()}


def plain(source: str, window_rows: int) -> list[float]:
    rows = pq.read_table(source)

    def loss(run: Run, outputs: Tensor, batch: Batch) -> Tensor:
        given = rows.take(batch.row.numpy())
        y, w = (torch.from_numpy(given[name].to_numpy()).float() for name in ("label", "w"))
        return (w * (outputs - y) ** 2).sum() / w.sum()

    return plain_rows(run_of(source, Parallel(), window_rows), loss, steps=STEPS)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw, rows = np.random.default_rng(0), 170
    x, item = draw.normal(size=rows), draw.integers(0, 30, rows)
    weight = np.where(draw.random(rows) < 0.1, 20 * draw.random(rows), 0.1 * (item % 3))
    label = 2 + x + 0.1 * item
    path = tmp_path_factory.mktemp("weighted") / "rows.parquet"
    pq.write_table(
        pa.table({"x": x, "item": item, "w": weight, "label": label, "at": np.arange(rows)}), path, row_group_size=8
    )
    return str(path)


@pytest.mark.parametrize("window_rows", WINDOWS.values(), ids=WINDOWS)
def test_ranks_train_to_the_losses_of_one_and_of_plain_torch(source: str, window_rows: int) -> None:
    assert run_of(source, Parallel(), window_rows).data.open().strata == (4 if window_rows == WINDOWS["strata"] else 1)
    wanted = plain(source, window_rows)
    assert wanted[-1] < 0.7 * wanted[0]
    found = dict[str, list[float]]()
    for size in (1, 2, 3):
        layouts = {name: layout for name, (ranks, layout) in LAYOUTS.items() if ranks == size}
        found |= in_world(size, traces, source, layouts, window_rows)[0]
    assert found.keys() == LAYOUTS.keys()
    for name, losses in found.items():
        assert np.abs(np.array(losses) / wanted - 1).max() < PARITY, name
