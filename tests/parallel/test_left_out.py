"""Steps whose gradients are no numbers though the loss is one: ZeRO leaves each of them out, and so do the tables."""

import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rtrain.mesh import Parallel
from rtrain.objectives.pointwise import Pointwise
from rtrain.optim import SGD, Adam, SparseOptim
from rtrain.parity import name_of
from rtrain.schema import Schema
from rtrain.training.replica import Replica
from tests.parallel.users_model import Blocks
from tests.parallel.worlds import Tables, in_world, tiny, train, whole_tables, write_rows

LAYOUTS = (
    Parallel(data=2, zero_stage=1),
    Parallel(data=2, zero_stage=3, embeddings="row_wise"),
    Parallel(data=1, tensor=2, zero_stage=2, embeddings="row_wise"),
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=1, embeddings="table_wise"),
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=3),
)
OPTIMS: dict[str, SparseOptim] = {"sgd": SGD(lr=0.5), "adam": Adam(lr=0.01)}
BROKEN = (3, 4, 7)
now = 0


class Breaking(Pointwise):
    """In some steps the gradient of the last rank's rows alone is no number: a square root's at 0."""

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = super().row_losses(logits, labels)
        here = now in BROKEN and dist.get_rank() == dist.get_world_size() - 1
        return losses + (0 * logits).sqrt() if here else losses


class Broken(Blocks):
    def objective(self, schema: Schema) -> Pointwise:
        return Breaking()


def steps(source: str, asked: list[tuple[str, str]]) -> dict[str, tuple[list[int], list[float]]]:
    """The steps at which tables and their optimizer stayed as they were, and the losses."""
    global now
    found = {}
    for layout, (name, optim) in product(LAYOUTS, OPTIMS.items()):
        if (name_of(layout), name) not in asked:
            continue
        before: list[tuple[Tables, Any]] = []

        def look(step: int, replica: Replica, before: list[tuple[Tables, Any]] = before) -> None:
            global now
            now = step
            assert replica.tables is not None
            states = [(c.name, c.data.tolist()) for c in replica.tables.chunks() if c.name.startswith("optim.")]
            before.append((whole_tables(replica), states))

        run = tiny(source, layout, optim, config=Broken(dim=16))
        losses = train(run, before_step=look)
        assert (name == "adam") == any("exp_avg" in chunk for chunk, _ in before[-1][1])
        still = [step for step, (a, b) in enumerate(pairwise(before)) if a == b]
        assert all(torch.tensor(rows).isfinite().all() for rows in before[-1][0].values())
        found[f"{name_of(layout)} {name}"] = still, losses
    return found


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, tuple[list[int], list[float]]]:
    """What the tests that were drawn ask for."""
    items = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {
        (of.params["layout"], of.params["optim"]) for of in items if of and {"layout", "optim"} <= of.params.keys()
    }
    source: Path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    write_rows(str(source))
    return in_world(2, steps, str(source), sorted(asked))[0]


@pytest.mark.parametrize(
    ("layout", "optim"),
    # One optimizer of each layout always, the other as the day draws.
    [
        pytest.param(name_of(layout), optim, marks=[pytest.mark.slow] * ((i + j) % 2))
        for (i, layout), (j, optim) in product(enumerate(LAYOUTS), enumerate(OPTIMS))
    ],
)
def test_tables_leave_out_what_zero_leaves_out(
    found: dict[str, tuple[list[int], list[float]]], layout: str, optim: str
) -> None:
    still, losses = found[f"{layout} {optim}"]
    assert still == list(BROKEN)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
