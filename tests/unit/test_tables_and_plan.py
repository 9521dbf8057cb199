from dataclasses import replace

import pytest
import torch

import rtrain
from recipes.dlrm_movielens import run
from rtrain.errors import ConfigError
from rtrain.nn.tables import BLOCK_ROWS, Table, initial_rows


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (4090, 4100), (BLOCK_ROWS, 9000), (8191, 8193)])
def test_any_slice_of_a_fresh_table_is_the_same(start: int, stop: int) -> None:
    table = Table(name="t", rows=9000, dim=4, features=("f",))
    whole = initial_rows(table, 3, 0, 9000)
    assert torch.equal(initial_rows(table, 3, start, stop), whole[start:stop])
    assert whole.abs().max() <= 9000**-0.5
    assert not torch.equal(whole, initial_rows(table, 4, 0, 9000))
    assert not torch.equal(whole, initial_rows(replace(table, name="u"), 3, 0, 9000))


def test_runs_that_cannot_be() -> None:
    for changes, said in [
        ({"name": "a/b"}, "name: 'a/b' must be letters"),
        ({"evaluation.monitor": "gauc"}, "evaluation.monitor: 'gauc' is not among the metrics: auc, log_loss, ndcg@10"),
        ({"duration.epochs": 0}, "duration: epochs must be at least 1, or none, got 0"),
        ({"storage": "s3://key:secret@bucket/runs"}, "storage: the URI carries a password"),
        ({"handoff.export": False}, "handoff.serve_check: needs handoff.export"),
    ]:
        with pytest.raises(ConfigError, match=said):
            rtrain.override(run(), changes)


def test_plan_counts_every_byte() -> None:
    planned = rtrain.plan(run())
    weights = sum(t.rows * t.dim * 4 for t in planned.tables)
    assert sum(r["tables"] for r in planned.bytes_per_rank) == weights
    assert sum(r["tables_optimizer"] for r in planned.bytes_per_rank) >= sum(t.rows * 4 for t in planned.tables)
    zero3 = rtrain.plan(rtrain.override(run(), {"parallel.zero_stage": 3}))
    assert zero3.bytes_per_rank[0]["parameters"] * 2 - planned.bytes_per_rank[0]["gradients"] in range(9)
    assert "user_id" in str(planned)
    assert planned.to_json()["axes"] == {"pipeline": 1, "data": 2, "tensor": 1}
