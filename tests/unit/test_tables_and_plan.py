from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import rtrain
from recipes.dlrm_movielens import run
from recipes.gpt_stdlib import run as gpt
from recipes.lightgcn_movielens import run as light_gcn
from recipes.text_tower_movielens import run as text_tower
from rtrain.data.protocol import NotCounted
from rtrain.data.synthetic import CRITEO
from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, TableLayout, lay_out
from rtrain.models.dlrm import DLRM
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.nn.tables import BLOCK_ROWS, Kept, Table, initial_rows
from rtrain.optim import SGD, Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.parallel.activations import kept_of_ranks
from rtrain.parallel.at_most import AtMost
from rtrain.parallel.placement import bytes_per_rank, total_bytes
from rtrain.parallel.stage import Stage
from rtrain.parallel.table_planning import placements, plan_tables
from rtrain.schema import Id, IdList, Schema
from rtrain.text import Text
from tests.parallel.worlds import crowded


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


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_tables_of_the_fields_size_are_balanced(device: str) -> None:
    """95 GB in tables of Criteo's proportions, the largest 28.5 GB, over 64 ranks."""
    scale = 95e9 / (sum(CRITEO) * 128 * 4)
    tables = tuple(
        Table(name=f"t{n}", rows=max(3, int(rows * scale)), dim=128, features=(f"f{n}",))
        for n, rows in enumerate(CRITEO)
    )
    plan = plan_tables(
        tables,
        Parallel(),
        RowWiseAdagrad(lr=0.1),
        world_size=64,
        local_world_size=8 if device == "cuda" else 64,
        device=device,
        batch_per_rank=1024,
        memory_bytes_per_rank=80 * 2**30,
    )
    held = [0] * 64
    for shard in (shard for table in placements(plan, tables) for shard in table.shards):
        held[shard.rank] += shard.bytes
    assert sum(held) == sum(table.bytes for table in tables) > 94e9
    assert max(held) < 1.3 * sum(held) / 64


@pytest.mark.parametrize(
    ("optim", "dtype", "times"),
    [
        (RowWiseAdagrad(), "float32", 1.0),
        (Adagrad(), "float32", 2.0),
        (Adam(), "float32", 4.0),
        (RowWiseAdagrad(), "float16", 1.0),
        (Adagrad(), "float16", 3.0),
        (SGD(), "float16", 1.0),
    ],
)
def test_what_an_optimizer_holds_beside_the_weights_has_to_fit_too(
    optim: SparseOptim, dtype: Kept, times: float
) -> None:
    """`times`: of the weights. The planner keeps 5 % back, and counts a batch's ids and vectors."""
    table = Table(name="t", rows=2**20, dim=64, features=("f",), dtype=dtype)
    assert table.bytes == 2**26 * (4 if dtype == "float32" else 2)

    def fits(memory: float) -> bool:
        try:
            plan_tables(
                (table,), Parallel(), optim, world_size=1, local_world_size=1, device="cpu", batch_per_rank=8,
                memory_bytes_per_rank=int(memory),
            )  # fmt: skip
        except ConfigError:
            return False
        return True

    assert fits(1.1 * times * table.bytes) and not fits(times * table.bytes)


def test_a_dense_part_that_does_not_fit_is_refused_with_what_it_would_hold() -> None:
    with pytest.raises(ConfigError) as caught:
        rtrain.plan(rtrain.override(run(), {"cluster.memory_gb_per_worker": 5e-5}))
    said = str(caught.value)
    held = "parameters 40.6 KiB, gradients 27.1 KiB, optimizer 27.1 KiB, checkpoint 81.2 KiB, activations 843.2 KiB"
    assert said.startswith(f"rank 0 would hold 1019.2 KiB ({held}), but has 52.4 KiB (cluster.memory_gb_per_worker). ")
    assert "Cut the dense part further" in said and "lower global_batch or raise parallel.microbatches" in said
    assert "recompute" not in said  # of one piece nothing is saved
    decoder = rtrain.override(gpt(), {"cluster.memory_gb_per_worker": 1e-2})
    with pytest.raises(ConfigError, match="microbatches, set parallel.recompute to 'pieces', add workers"):
        rtrain.plan(decoder)
    with pytest.raises(ConfigError, match="microbatches, add workers"):
        rtrain.plan(rtrain.override(decoder, {"parallel.recompute": "pieces"}))


def test_a_table_that_every_rank_has_is_counted_on_every_rank() -> None:
    tables = tuple(Table(name=name, rows=1000, dim=16, features=(name,)) for name in "ab")
    parallel = Parallel(tables=(TableLayout(table="a", embeddings="data_parallel"),), embeddings="table_wise")
    plan = plan_tables(
        tables, parallel, Adagrad(), world_size=4, local_world_size=4, device="cpu", batch_per_rank=8,
        memory_bytes_per_rank=2**30,
    )  # fmt: skip
    placed = placements(plan, tables)
    assert [shard.rank for shard in placed[0].shards] == [0, 1, 2, 3] and len(placed[1].shards) == 1
    counted = bytes_per_rank(parallel, Adagrad(), placed, lay_out(parallel, 4), dense_parameters=[0] * 4)
    has_b = placed[1].shards[0].rank
    for rank, row in enumerate(counted):  # of a weights, accumulator, gradient and its copy
        assert row["tables"] == 64_000 * (1 + (rank == has_b))
        assert row["tables_optimizer"] == 64_000 * (3 + (rank == has_b))


def test_a_table_in_unified_memory_reaches_the_planner_with_its_cache() -> None:
    tables = tuple(Table(name=name, rows=2**22, dim=64, features=(name,)) for name in "ab")  # 1 GiB each
    cached = TableLayout(
        table="a", embeddings="row_wise", kernel="fused_uvm_caching", cache_fraction=0.125, cache_policy="lfu",
        cache_spare_gb=0.5,
    )  # fmt: skip
    parallel = Parallel(embeddings="row_wise", tables=(cached,))

    def planned(parallel: Parallel) -> Any:
        return plan_tables(
            tables, parallel, SGD(), world_size=2, local_world_size=2, device="cuda", batch_per_rank=8,
            memory_bytes_per_rank=800 * 2**20,
        )  # fmt: skip

    plan = planned(parallel)
    (of_tables,) = plan.plan.values()
    params = of_tables["a"].cache_params
    assert of_tables["a"].compute_kernel == "fused_uvm_caching" and of_tables["b"].compute_kernel == "fused"
    assert (params.load_factor, params.algorithm.name, params.reserved_memory) == (0.125, "LFU", 0.5)
    assert of_tables["b"].cache_params is None
    placed = placements(plan, tables)
    counted = bytes_per_rank(parallel, SGD(), placed, lay_out(parallel, 2), dense_parameters=[0, 0])
    assert [row["tables"] for row in counted] == [2**29 + 2**26] * 2
    with pytest.raises(ConfigError, match="do not fit in 800.0 MiB"):
        planned(Parallel(embeddings="row_wise"))


def test_rows_over_the_ranks_of_a_node() -> None:
    tables = tuple(Table(name=name, rows=rows, dim=16, features=(name,)) for name, rows in (("a", 1000), ("b", 3)))

    def held(world: int, local: int) -> dict[str, list[int]]:
        plan = plan_tables(
            tables, Parallel(embeddings="table_row_wise"), SGD(), world_size=world, local_world_size=local,
            device="cpu", batch_per_rank=8, memory_bytes_per_rank=2**30,
        )  # fmt: skip
        return {of.table: sorted(shard.rank for shard in of.shards) for of in placements(plan, tables)}

    of_nodes = held(8, 4)
    assert of_nodes["a"] in ([0, 1, 2, 3], [4, 5, 6, 7]) and len(of_nodes["b"]) == 1  # three rows stay whole
    with pytest.raises(ConfigError, match="table_row_wise splits tables over the ranks of a node, but 3 ranks are not"):
        held(3, 2)


def test_a_table_is_split_as_it_is_asked_to_be() -> None:
    tables = tuple(Table(name=name, rows=1000, dim=16, features=(name,)) for name in "abc")
    own = (TableLayout(table="b", embeddings="row_wise"), TableLayout(table="c", embeddings="column_wise"))
    found = plan_tables(
        tables, Parallel(embeddings="table_wise", tables=own), Adagrad(lr=0.1), world_size=2, local_world_size=2,
        device="cpu", batch_per_rank=8, memory_bytes_per_rank=2**30,
    )  # fmt: skip
    kinds = {of.table: of.sharding for of in placements(found, tables)}
    assert kinds == {"a": "table_wise", "b": "row_wise", "c": "column_wise"}


def test_the_planner_is_told_how_many_ids_a_row_has() -> None:
    """Two tables of one size, of which one is read by lists of 50: the planner gives it a rank of its own."""

    def held(mean_length: float | None) -> dict[str, int]:
        schema = Schema(
            features=(
                IdList(name="long", rows=1000, mean_length=mean_length),
                *(Id(name=name, rows=1000) for name in "abc"),
            )
        )
        tables = DLRM(dim=16).table_list(schema)
        plan = plan_tables(
            tables, Parallel(embeddings="table_wise"), Adagrad(), world_size=2, local_world_size=2, device="cuda",
            batch_per_rank=4096, memory_bytes_per_rank=2**30,
        )  # fmt: skip
        return {of.table: of.shards[0].rank for of in placements(plan, tables)}

    told, as_before = held(50.0), held(None)
    assert [rank == told["long"] for rank in told.values()] == [True, False, False, False]
    assert sorted(as_before.values()) == [0, 0, 1, 1]


def test_what_a_schema_knows_of_the_lengths_of_lists() -> None:
    schema = Schema(
        features=(
            Id(name="one", rows=9),
            IdList(name="any", rows=9),
            IdList(name="some", rows=9, max_length=20),
            IdList(name="stated", rows=9, table="one", max_length=20, mean_length=2.5),
            Text(name="text", rows=9),
        )
    )
    lengths = {t.name: t.mean_lengths for t in DLRM(dim=16).table_list(schema)}
    assert lengths == {"one": (1.0, 2.5), "any": (1.0,), "some": (20.0,), "text": (32.0,)}
    for mean in (0.0, 21.0):
        with pytest.raises(ConfigError, match=r"'some': mean_length must be above 0 and at most max_length \(20\)"):
            IdList(name="some", rows=9, max_length=20, mean_length=mean)


def test_a_plan_counts_activations_or_says_why_not() -> None:
    planned = rtrain.plan(run())
    assert planned.not_counted == planned.to_json()["activations_not_counted"] == ""
    assert "activations" in str(planned)
    # Half the rows: half of all that is kept, but for what is the same for all rows.
    half = rtrain.plan(rtrain.override(run(), {"global_batch": run().global_batch // 2}))
    kept, less = (of.bytes_per_rank[0]["activations"] for of in (planned, half))
    assert kept / 2 <= less < 0.55 * kept
    by_parts = rtrain.plan(rtrain.override(run(), {"parallel.microbatches": 4})).bytes_per_rank[0]["activations"]
    assert kept / 4 < by_parts < 0.6 * kept  # the batch and its vectors are whole
    assert rtrain.plan(text_tower()).not_counted == ""  # in-batch softmax, features of users and items, and words
    assert rtrain.plan(light_gcn()).not_counted == ""
    unknown = rtrain.plan(rtrain.override(light_gcn(), {"data.edges": None}))
    assert "activations" not in unknown.bytes_per_rank[0]
    assert str(unknown).endswith(
        "activations not counted: data: a graph's size only open data tell. Give data.edges, the interactions that "
        "train"
    )


def test_what_chooses_by_numbers_is_as_large_as_can_be() -> None:
    """Beside what torch gives where a mask is true everywhere, and no value is there twice."""
    x, mask, flat = torch.rand(3, 4, 5), torch.ones(3, 4, dtype=torch.bool), torch.arange(12)
    calls: list[Callable[..., Any]] = [
        lambda x, mask, flat: x[mask],
        lambda x, mask, flat: x[:, mask[0], 1:],
        lambda x, mask, flat: x[mask[:, 0], flat[:3] % 4],
        lambda x, mask, flat: mask.nonzero(),
        lambda x, mask, flat: x.masked_select(mask.unsqueeze(2)),
        lambda x, mask, flat: flat.unique(),
        lambda x, mask, flat: flat.view(3, 4).unique(return_inverse=True),
        lambda x, mask, flat: flat.unique(return_inverse=True, return_counts=True),
    ]
    for call in calls:
        wanted = call(x, mask, flat)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, AtMost():
            found = call(*(fake.from_tensor(tensor) for tensor in (x, mask, flat)))
        for real, counted in zip(*((of if isinstance(of, tuple) else (of,)) for of in (wanted, found)), strict=True):
            assert (real.shape, real.dtype) == (counted.shape, counted.dtype)
    with FakeTensorMode(), pytest.raises(DynamicOutputShapeException):
        torch.ones(3, dtype=torch.bool).nonzero()


def test_many_ranks_are_counted_with_one_forward_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards: list[int] = []
    plain = Stage.forward
    monkeypatch.setattr(Stage, "forward", lambda self, *a, **k: forwards.append(1) or plain(self, *a, **k))
    parallel = Parallel(tensor=2, pipeline=2, microbatches=2)
    many = replace(gpt(), parallel=parallel, global_batch=4096)
    many = replace(many, cluster=replace(gpt().cluster, workers=4096, memory_gb_per_worker=1.0))
    assert len(rtrain.plan(many).bytes_per_rank) == 4096
    assert len(forwards) == 2


def test_a_model_that_looks_at_numbers_is_planned_without_activations() -> None:
    class Looks(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens[: int(tokens.sum())]

    pieces = (Piece(name="looks", build=Looks, cost=0.0, takes=("tokens",)),)
    blueprint = Blueprint(pieces=pieces, objective=gpt().blueprint.objective, dealt="tokens")
    with pytest.raises(NotCounted, match="a forward pass without numbers fails"):
        kept_of_ranks(blueprint, Parallel(), lay_out(Parallel(), 1), global_batch=2, blank=gpt().data.blank)


def test_what_fits_but_for_a_step_is_refused_with_what_would_keep_less() -> None:
    """Weights, gradients, optimizers and tables take 0.23 MiB of a rank here, and a step 0.82."""
    small = rtrain.override(run(), {"cluster.memory_gb_per_worker": 0.9 / 1024})
    said = r"do not fit in 0.2 MiB, what the dense part and 0.7 MiB of activations leave on .* raise parallel.micro"
    with pytest.raises(ConfigError, match=said):
        rtrain.plan(small)
    rtrain.plan(rtrain.override(small, {"global_batch": 128}))


def test_tables_are_placed_in_what_a_step_leaves() -> None:
    """Three of 1 MiB beside each other fit in 4 MiB with the dense part, but not with a large step's activations."""

    def placed(batch: int) -> list[int]:
        """The rank of each table."""
        planned = rtrain.plan(crowded(batch))
        assert all(total_bytes(row) <= 4 * 2**20 for row in planned.bytes_per_rank)
        return [table.shards[0].rank for table in planned.tables]

    assert placed(512) == [0, 1, 1, 1]  # the list alone is read as often as all others
    assert placed(1024) == [0, 1, 1, 0]
    with pytest.raises(ConfigError, match=r"in 1.6 MiB, what the dense part and 2.1 MiB of activations leave on each"):
        placed(2048)
