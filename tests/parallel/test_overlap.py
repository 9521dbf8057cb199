"""Ids of the next batch travel while a step computes: to the bit the losses and tables of a run whose ids do not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torchrec.sparse import jagged_tensor

from rtrain.mesh import Parallel, lay_out
from rtrain.parallel.ahead import Travelling
from rtrain.run import Run
from rtrain.training.agreement import open_data
from rtrain.training.breakdown import Stopwatch
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from rtrain.training.world import join
from tests.parallel.test_models import MODELS
from tests.parallel.test_models import SPARSE as OPTIMIZERS
from tests.parallel.worlds import in_world, tiny, whole_tables

STEPS = 8
WORLDS = (1, 2, 4)
RUNS = {
    "row-wise": ("dlrm", Parallel(dense="ddp", embeddings="row_wise"), "adagrad"),
    "table-wise": ("din", Parallel(zero_stage=1, embeddings="table_wise"), "sgd"),
    "column-wise": ("dlrm", Parallel(zero_stage=3, embeddings="column_wise"), "rowwise"),
    "copies": ("dlrm", Parallel(dense="ddp", embeddings="data_parallel"), "sgd"),
    "microbatches": ("din", Parallel(dense="ddp", embeddings="row_wise", microbatches=2), "adagrad"),
}


def run_of(rows: str, name: str, overlap: bool) -> Run:
    model, parallel, sparse = RUNS[name]
    return tiny(rows, replace(parallel, overlap=overlap), OPTIMIZERS[sparse], config=MODELS[model])


def everything(rows: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in RUNS:
        for overlap in (False, True):
            kept: list[Replica] = []
            begun: list[int] = []

            def look(step: int, replica: Replica, kept: list[Replica] = kept, begun: list[int] = begun) -> None:
                kept[:] = [replica]
                begun.append(replica._ahead is not None)
                if step == 3:  # an evaluation looks up while ids of the next step are on their way
                    data = open_data(replica.run)
                    mesh = lay_out(replica.run.parallel, dist.get_world_size())
                    share = mesh.share(dist.get_rank(), replica.blueprint.dealt)
                    replica.score(data.scan("valid", global_batch=16, rank=share.index, world_size=share.count))

            told = trace(run_of(rows, name, overlap), steps=STEPS, before_step=look)
            found[f"{name} {overlap}"] = (told.losses, whole_tables(kept[0]), begun)
    return found


@pytest.fixture(scope="module")
def found(rows: str) -> dict[int, dict[Any, Any]]:
    return {world: in_world(world, everything, rows)[0] for world in WORLDS}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("world", WORLDS)
def test_overlapped_is_the_plain_loop_to_the_bit(found: dict[int, dict[Any, Any]], name: str, world: int) -> None:
    plain, overlapped = (found[world][f"{name} {overlap}"] for overlap in (False, True))
    assert plain[:2] == overlapped[:2]
    assert plain[2] == [0] * STEPS and overlapped[2] == [0] + [1] * (STEPS - 1)


def replica_of(run: Run) -> tuple[Replica, Callable[..., Any], Any]:
    world = join(gpu=False, timeout_s=60)
    mesh = lay_out(run.parallel, world.size)
    replica = Replica(run, mesh, world, stored=None, training=True)
    share = mesh.share(world.rank, run.blueprint.dealt)
    reader = open_data(run).reader(
        "train", global_batch=run.global_batch, seed=0, rank=share.index, world_size=share.count
    )
    watch = Stopwatch(world.device, sample_steps=0)

    def step(number: int, batch: Any, upcoming: Any = None) -> Any:
        return replica.train_step(batch, step=number, total_steps=9, watch=watch, upcoming=upcoming)

    return replica, step, iter(reader)


def another(rows: str) -> list[Any]:
    """A batch is announced that is not trained on, and one at the end that nobody will train on."""
    losses = []
    for announced in (False, True):
        replica, step, batches = replica_of(run_of(rows, "row-wise", True))
        first, second, third = (next(batches)[0] for _ in range(3))
        losses.append(torch.stack([step(0, first, third if announced else None), step(1, second, third)]))
        assert replica._ahead is not None
        on_the_way: Travelling = replica._ahead.begun
        replica.drop_upcoming()
        assert replica._ahead is None and not on_the_way._numbers
        dist.barrier()
    return [loss.tolist() for loss in losses]


def test_what_was_announced_and_is_not_trained_on_changes_nothing(rows: str) -> None:
    for plain, announced in in_world(2, another, rows):
        assert plain == announced


def asked(rows: str) -> dict[str, int]:
    """How often TorchRec reads numbers off the device until the ids are on their way, in one step of each layout."""
    found, reads = dict[str, int](), list[Any]()
    real = jagged_tensor._safe_tolist
    with patch.object(jagged_tensor, "_safe_tolist", lambda tensor: reads.append(tensor) or real(tensor)):
        for name in RUNS:
            replica, _, batches = replica_of(run_of(rows, name, True))
            for _ in range(2):  # what the first step alone reads is not counted
                padded = replica._padded(next(batches)[0])
                reads.clear()
                begun = replica._begun(padded)
                found[name] = len(reads)
                begun.drop()
    return found


def test_sending_ids_waits_for_the_device_only_where_the_ids_themselves_say_how_many_go_where(rows: str) -> None:
    of_whole_tables = {"table-wise": 0, "column-wise": 0, "copies": 0}
    assert in_world(2, asked, rows)[0] == of_whole_tables | {"row-wise": 1, "microbatches": 2}
