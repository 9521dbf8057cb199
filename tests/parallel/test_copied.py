"""What `plan` says that each rank copies for a checkpoint is what it writes, to the byte."""

from typing import Any

import pytest

from rtrain.mesh import Parallel, lay_out
from rtrain.optim import SGD, Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.parallel.placement import copied_bytes
from rtrain.parallel.stage import parameters_of_ranks
from rtrain.schema import IdList
from rtrain.training.breakdown import Stopwatch
from rtrain.training.replica import Replica
from rtrain.training.world import join
from tests.parallel.test_managed import schema_of
from tests.parallel.worlds import SCHEMA, in_world, tiny

MANAGED = schema_of(IdList)
CASES: dict[str, tuple[dict[str, Any], SparseOptim]] = {
    "ddp table_wise": ({"dense": "ddp", "embeddings": "table_wise"}, RowWiseAdagrad(lr=0.1)),
    "l2 row_wise": ({"dense": "ddp", "embeddings": "row_wise"}, RowWiseAdagrad(lr=0.1, l2=0.1)),
    "zero1 column_wise": ({"zero_stage": 1, "embeddings": "column_wise"}, Adagrad(lr=0.1)),
    "zero3 adam": ({"zero_stage": 3, "embeddings": "row_wise"}, Adam(lr=0.1)),
    "managed": ({"dense": "ddp", "embeddings": "row_wise"}, RowWiseAdagrad(lr=0.1)),
    "data_parallel": ({"dense": "ddp", "embeddings": "data_parallel"}, SGD(lr=0.1)),
}


def copied(rows: str) -> dict[str, list[int]]:
    """Of this rank what was planned, and the bytes that it gives to a checkpoint; a step before makes moments."""
    found = {}
    for name, (layout, sparse) in CASES.items():
        run = tiny(rows, Parallel(**layout), sparse, schema=MANAGED if name == "managed" else SCHEMA)
        world = join(gpu=False, timeout_s=60)
        mesh = lay_out(run.parallel, world.size)
        replica = Replica(run, mesh, world, stored=None, training=True)
        place = {"rank": world.rank, "world_size": world.size}
        batch = next(iter(run.data.open().reader("train", global_batch=run.global_batch, seed=0, **place)))[0]
        replica.train_step(batch, step=0, total_steps=9, watch=Stopwatch(world.device, sample_steps=0))
        sizes = parameters_of_ranks(run.blueprint.pieces, run.parallel, mesh)
        wanted = copied_bytes(run.sparse_optim, replica.placements, mesh, dense_parameters=sizes)[world.rank]
        chunks = [c for c in replica.chunks() if c.name.startswith(("model.", "optim.")) and c.data.dim()]
        # What was seen since the last ranking is as much as it is.
        chunks = [c for c in chunks if not c.name.endswith((".values", ".seen", ".counts"))]
        found[name] = [wanted, sum(c.data.nbytes for c in chunks)]
    return found


def test_what_is_copied_is_what_is_written(rows: str) -> None:
    found = in_world(2, copied, rows)
    for name in CASES:
        for rank, of_rank in enumerate(found):
            planned, real = of_rank[name]
            assert planned == real, (name, rank)
        assert found[0][name][0] > found[1][name][0] > 0 or name == "data_parallel", name


@pytest.mark.parametrize("background", [True, False])
def test_a_plan_counts_the_copy_where_there_is_one(background: bool) -> None:
    import rtrain
    from recipes.dlrm_movielens import run

    planned = rtrain.plan(rtrain.override(run(), {"checkpoint.background": background}))
    assert all(("checkpoint" in row) is background for row in planned.bytes_per_rank)
