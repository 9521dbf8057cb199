from dataclasses import replace

import pytest
import torch

import rtrain
from recipes.dlrm_movielens import run
from rtrain.errors import ConfigError
from rtrain.nn.tables import BLOCK_ROWS, Table, initial_rows
from rtrain.optim import AdamW, RowWiseAdagrad, Schedule
from rtrain.schema import Batch, Dense, Id, IdList, Jagged, Schema


def test_schedules_at_their_corners() -> None:
    warm = Schedule(warmup_steps=4, decay="linear", floor=0.2)
    assert [warm.factor(s, 14) for s in (0, 3, 4, 9, 14, 99)] == pytest.approx([0.25, 1.0, 1.0, 0.6, 0.2, 0.2])
    cosine = Schedule(decay="cosine")
    assert [cosine.factor(s, 10) for s in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert Schedule().factor(7, 10) == 1.0


def test_rates_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: must be positive, got 0"):
        AdamW(lr=0)
    with pytest.raises(ConfigError, match=r"sparse_optim\.lr: must be positive, got -1"):
        RowWiseAdagrad(lr=-1)


def test_padding_adds_rows_that_touch_nothing() -> None:
    batch = Batch(
        dense=torch.tensor([[1.0], [2.0]]),
        ids=Jagged(("a", "b"), torch.tensor([5, 6, 7, 8, 9]), torch.tensor([1, 1, 3, 0], dtype=torch.int32)),
        label=torch.tensor([1.0, 0.0]),
        group=torch.tensor([3, 4]),
        row=torch.tensor([10, 11]),
        global_rows=5,
    )
    assert batch.padded(2) is batch
    padded = batch.padded(4)
    assert padded.ids.lengths.tolist() == [1, 1, 0, 0, 3, 0, 0, 0]
    assert padded.ids.values.tolist() == [5, 6, 7, 8, 9]
    assert padded.real.tolist() == [True, True, False, False]
    assert padded.row.tolist() == [10, 11, -1, -1]
    assert padded.dense.tolist() == [[1.0], [2.0], [0.0], [0.0]]
    assert (padded.rows, padded.global_rows) == (4, 5)


def test_schemas_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="the name 'a' is used twice"):
        Schema(features=(Dense(name="a"), Dense(name="a")))
    with pytest.raises(ConfigError, match="give either rows .* or vocabulary"):
        Id(name="a")
    with pytest.raises(ConfigError, match="schema.group: 'a' is not an Id feature"):
        Schema(features=(IdList(name="a", rows=3),), group="a")
    with pytest.raises(ConfigError, match="features of table 't' disagree on its rows: 3, 4"):
        Schema(features=(Id(name="a", rows=3, table="t"), Id(name="b", rows=4, table="t")))
    with pytest.raises(ConfigError, match="std must be positive"):
        Dense(name="a", std=0)


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
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"storage": "s3://key:secret@bucket/runs"}, "storage: the URI carries a password"),
        ({"handoff.export": False}, "handoff.serve_check: needs handoff.export"),
    ]:
        with pytest.raises(ConfigError, match=said):
            rtrain.override(run(), changes)


def test_plan_refuses_what_would_not_equal_one_process() -> None:
    for changes, said in [
        ({"parallel.tensor": 2}, r"parallel.tensor: 2, but DLRM has no tensor-parallel plan"),
        ({"parallel.pipeline": 2}, r"parallel.pipeline: 2, but DLRM has no pipeline-parallel plan"),
        ({"parallel.embeddings": "column_wise"}, r"column_wise with RowWiseAdagrad keeps one accumulator"),
        (
            {"parallel.embeddings": "column_wise", "sparse_optim": rtrain.Adagrad(), "model.dim": 12},
            r"needs a dim that is a multiple of 8; table 'user_id' has 12",
        ),
        (
            {"cluster.memory_gb_per_worker": 1e-5},
            r"do not fit in 0\.0 MiB on each of 2 ranks\. Add workers, lower .*, or",
        ),
    ]:
        with pytest.raises(ConfigError, match=said):
            rtrain.plan(rtrain.override(run(), changes))


def test_plan_counts_every_byte() -> None:
    planned = run().plan()
    weights = sum(t.rows * t.dim * 4 for t in planned.tables)
    assert sum(r["tables"] for r in planned.bytes_per_rank) == weights
    assert sum(r["tables_optimizer"] for r in planned.bytes_per_rank) >= sum(t.rows * 4 for t in planned.tables)
    zero3 = rtrain.plan(rtrain.override(run(), {"parallel.zero_stage": 3}))
    assert zero3.bytes_per_rank[0]["parameters"] * 2 - planned.bytes_per_rank[0]["gradients"] in range(9)
    assert "user_id" in str(planned)
    assert planned.to_json()["axes"] == {"pipeline": 1, "data": 2, "tensor": 1}
