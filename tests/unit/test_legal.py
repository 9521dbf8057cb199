"""Layouts that are refused before anything starts, each with its reason and the way out."""

from typing import Any

import pytest
from torch import nn

import rtrain
from recipes.dlrm_movielens import run
from rtrain.data.tokens import TokenFacts
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel, TableLayout, lay_out
from rtrain.models.decoder import Decoder
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.nn.tables import Table
from rtrain.objectives.pointwise import Pointwise
from rtrain.optim import SGD, Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.parallel.legal import refuse

EMBEDDINGS = ("sharded", "table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel")


def table(dim: int, name: str = "user_id") -> Table:
    return Table(name=name, rows=100, dim=dim, features=(name,))


def refusal(parallel: Parallel, optim: SparseOptim, *tables: Table, world_size: int = 2, on_gpu: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        refuse_tables(parallel, optim, tables, world_size, on_gpu=on_gpu)
    return str(caught.value)


def refuse_tables(
    parallel: Parallel, optim: SparseOptim, tables: tuple[Table, ...], world_size: int, *, on_gpu: bool = False
) -> None:
    degrees = parallel.tensor * parallel.pipeline
    mesh = lay_out(parallel, world_size * degrees)
    tower = Piece(name="tower", build=nn.Identity, cost=0.0)
    blueprint = Blueprint(tables=tables, pieces=(tower,), objective=Pointwise())
    refuse(parallel, mesh, blueprint, optim, on_gpu=on_gpu, global_batch=32, model="DLRM")


def refuse_dense(parallel: Parallel, mesh: Mesh, model: Decoder, *, context: int) -> None:
    blueprint = model.blueprint(TokenFacts(context))
    refuse(parallel, mesh, blueprint, SGD(), on_gpu=False, global_batch=32, model="Decoder")


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_an_axis_that_the_model_has_no_plan_for(axis: Any) -> None:
    message = refusal(Parallel(**{axis: 2}), SGD(), table(16))
    assert message == (
        f"parallel.{axis}: 2, but DLRM has no {axis}-parallel plan. "
        f"Set parallel.{axis} to 1; its tables are split over all workers anyway"
    )


def test_column_wise_tables_under_a_row_wise_optimizer() -> None:
    message = refusal(Parallel(embeddings="column_wise"), RowWiseAdagrad(), table(16))
    assert message.startswith("parallel.embeddings: column_wise with RowWiseAdagrad ")
    assert message.endswith("Use Adagrad, or embeddings='row_wise'")


@pytest.mark.parametrize(("dim", "world_size"), [(16, 3), (16, 8), (4, 2), (20, 2), (6, 1)])
def test_columns_that_do_not_divide_over_the_ranks(dim: int, world_size: int) -> None:
    fits = table(4 * world_size, name="fits")
    message = refusal(Parallel(embeddings="column_wise"), Adagrad(), fits, table(dim), world_size=world_size)
    assert message == (
        f"parallel.embeddings: column_wise over {world_size} ranks needs a dim that is a multiple of "
        f"{4 * world_size}; table 'user_id' has {dim}. Raise model.dim, or use 'row_wise'"
    )


def accepts(parallel: Parallel, optim: SparseOptim, dim: int, world_size: int) -> bool:
    try:
        refuse_tables(parallel, optim, (table(dim),), world_size)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("optim", [SGD(), Adagrad(), RowWiseAdagrad(), Adam()])
@pytest.mark.parametrize("dense", ["ddp", "zero"])
def test_what_is_refused_and_nothing_else(optim: SparseOptim, dense: Any) -> None:
    for embeddings in EMBEDDINGS:
        for dim in (4, 8, 16):
            for world_size in (1, 2, 4):
                parallel = Parallel(dense=dense, embeddings=embeddings)  # type: ignore[arg-type]
                by_columns = embeddings == "column_wise"
                wrong = by_columns and (isinstance(optim, RowWiseAdagrad) or dim < 4 * world_size)
                assert accepts(parallel, optim, dim, world_size) is not wrong


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
def test_tables_that_do_not_fit_name_the_three_ways_out(embeddings: str) -> None:
    small = rtrain.override(
        run(),
        {
            "cluster.memory_gb_per_worker": 1e-3,
            "parallel.embeddings": embeddings,
            "sparse_optim": Adagrad(),
        },
    )
    with pytest.raises(ConfigError) as caught:
        rtrain.plan(small)
    message = str(caught.value)
    assert "largest: 'item_id'" in message
    assert "on each of 2 ranks (1.0 MiB, cluster.memory_gb_per_worker)" in message
    assert (
        "Add workers, raise parallel.microbatches, lower global_batch or model.dim (16)" in message
        and "a step of 256 rows a rank" in message
    )
    is_split = embeddings in ("sharded", "row_wise", "table_row_wise")
    assert ("or split the rows with parallel.embeddings='row_wise'" in message) is not is_split


def test_the_budget_is_what_decides() -> None:
    enough = rtrain.override(run(), {"cluster.memory_gb_per_worker": 0.25})
    plan = rtrain.plan(enough)
    assert plan.memory_per_rank == 2**28
    assert plan.memory_from == "cluster.memory_gb_per_worker"
    for rank in plan.bytes_per_rank:
        assert 0 < rank["tables"] + rank["tables_optimizer"] < plan.memory_per_rank


def own(table: str) -> tuple[TableLayout, ...]:
    return (TableLayout(table=table, embeddings="column_wise"),)


def test_a_table_has_one_layout() -> None:
    with pytest.raises(ConfigError, match=r"parallel.tables: table 'item' is there twice. Give each once"):
        Parallel(tables=own("item") * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.pipeline": 2}, "parallel.pipeline: 2, but DLRM has no pipeline-parallel plan"),
        ({"parallel.embeddings": "column_wise"}, "column_wise with RowWiseAdagrad"),
        ({"parallel.embeddings": "column_wise", "sparse_optim": SGD(), "model.dim": 12}, "multiple of 8"),
        ({"parallel.tables": own("itm_id")}, "parallel.tables: DLRM has no table 'itm_id'; did you mean 'item_id'?"),
        ({"parallel.tables": own("item_id")}, "parallel.tables: column_wise with RowWiseAdagrad"),
        ({"cluster.workers": 3, "parallel.data": 2}, "makes 2 ranks, but cluster.workers is 3"),
        ({"parallel.recompute": "pieces"}, "parallel.recompute: 'pieces', but DLRM has 1 piece, and backward needs"),
        ({"parallel.microbatches": 600}, "parallel.microbatches: 600, but a step has only 256 rows a rank"),
        ({"data.schema.features": (rtrain.Id(name="user_id", rows=4),)}, "the schema has no Dense feature"),
    ],
)
def test_plan_refuses_them_too(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rtrain.plan(rtrain.override(run(), changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("how", ["table_row_wise", "data_parallel"])
def test_what_torchrec_has_of_pooled_tables_alone(how: Any) -> None:
    item = Table(name="item", rows=100, dim=16, features=("item", "seen"), sequences=("seen",))
    parallel = Parallel(tables=(TableLayout(table="item", embeddings=how),))
    said = refusal(parallel, SGD(), table(16), item)
    assert said.startswith(f"parallel.tables: TorchRec has {how} of tables alone whose vectors are summed")


SIXTEEN: list[tuple[SparseOptim, Any, bool, str]] = [
    (Adam(), "float16", True, "but Adam takes gradients from where the weights lie, where they would be rounded"),
    (Adagrad(l2=1e-3), "float16", True, "but what sparse_optim.l2 (0.001) takes off a weight in a step is less"),
]


@pytest.mark.parametrize(("optim", "dtype", "on_gpu", "message"), SIXTEEN)
def test_tables_of_16_bits_that_cannot_be(optim: SparseOptim, dtype: Any, on_gpu: bool, message: str) -> None:
    kept = Table(name="user_id", rows=100, dim=16, features=("user_id",), dtype=dtype)
    said = refusal(Parallel(), optim, kept, on_gpu=on_gpu)
    assert said.startswith(f"model.tables: table 'user_id' is {dtype}, {message}")


def cached(**fields: Any) -> Parallel:
    return Parallel(
        tables=(TableLayout(**{"table": "user_id", "embeddings": "row_wise", "kernel": "fused_uvm_caching"} | fields),)
    )


def test_tables_in_unified_memory_that_cannot_be() -> None:
    said = "parallel.tables: table 'user_id' has kernel 'fused_uvm_caching', "
    assert refusal(cached(), SGD(), table(16)).startswith(f"{said}but on CPU all memory is the host's. Use 'fused'")
    assert refusal(cached(), Adam(), table(16), on_gpu=True).startswith(f"{said}but Adam changes weights")
    assert refusal(cached(), SGD(l2=0.1), table(16), on_gpu=True).startswith(f"{said}but sparse_optim.l2 (0.1) changes")
    everywhere = cached(embeddings="data_parallel")
    assert refusal(everywhere, SGD(), table(16), on_gpu=True).startswith(f"{said}which no data_parallel table can have")
    refuse_tables(cached(), RowWiseAdagrad(), (table(16),), 2, on_gpu=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "fused", "cache_policy": "lfu"}, "has cache_policy, but kernel 'fused' has no cache"),
        ({"cache_fraction": 0.0}, "cache_fraction must be above 0 and at most 1, got 0.0"),
        ({"cache_spare_gb": -1.0}, "cache_spare_gb must be at least 0, got -1.0"),
    ],
)
def test_caches_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel.tables: table 'user_id'.*{message}"):
        cached(**fields)


def test_a_table_of_16_bits_that_every_rank_would_have() -> None:
    kept = Table(name="user_id", rows=100, dim=16, features=("user_id",), dtype="float16")
    said = refusal(Parallel(embeddings="data_parallel"), SGD(), kept)
    assert said.startswith(
        "model.tables: table 'user_id' is float16, but data_parallel, whose gradient has the weights'"
    )


@pytest.mark.parametrize("optim", [SGD(), Adagrad(), RowWiseAdagrad()])
def test_tables_of_16_bits_that_can(optim: SparseOptim) -> None:
    for on_gpu in (False, True):
        kept = Table(name="user_id", rows=100, dim=16, features=("user_id",), dtype="float16")
        refuse_tables(Parallel(), optim, (kept,), 2, on_gpu=on_gpu)


# Dense models. -----------------------------------------------------------------------------------------------------

SMALL = Decoder(vocab=96, layers=4, dim=48, heads=6, kv_heads=2, hidden=64)
ILLEGAL = [
    ({"tensor": 4}, "parallel.tensor: 4 does not divide model.heads, 6."),
    ({"tensor": 5}, "parallel.tensor: 5 does not divide model.heads, 6."),
    (
        {"pipeline": 8, "microbatches": 8},
        "parallel.pipeline: 8 ranks with schedule '1f1b' make 8 stages",
    ),
    ({"pipeline": 4, "microbatches": 4, "schedule": "interleaved_1f1b"}, "make 8 stages, but Decoder has 6 pieces"),
    ({"pipeline": 2}, "parallel.microbatches: schedule '1f1b' over 2 pipeline ranks needs at least 2 microbatches"),
    ({"pipeline": 2, "microbatches": 3, "schedule": "interleaved_1f1b"}, "needs a multiple of the 2 pipeline ranks"),
    ({"microbatches": 64}, "parallel.microbatches: 64, but a step has only 32 rows a rank"),
    ({"data": 64}, "global_batch: 32 rows cannot be shared by 64 ranks"),
    (
        {"pipeline": 2, "microbatches": 2, "schedule": "zbv_zero_bubble", "zero_stage": 3},
        "parallel.zero_stage: 3 with schedule 'zbv_zero_bubble'",
    ),
    (
        {"pipeline": 2, "microbatches": 2, "schedule": "interleaved_zero_bubble", "recompute": "pieces"},
        "parallel.recompute: 'pieces' with schedule 'interleaved_zero_bubble', which parts the backward pass",
    ),
    ({"embeddings": "row_wise"}, "parallel.embeddings: 'row_wise', but Decoder has no sharded tables"),
]


@pytest.mark.parametrize(("fields", "message"), ILLEGAL)
def test_a_dense_layout_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    parallel = Parallel(**{"data": 1, **fields})
    mesh = lay_out(parallel, (parallel.data or 1) * parallel.tensor * parallel.pipeline)
    with pytest.raises(ConfigError) as caught:
        refuse_dense(parallel, mesh, SMALL, context=30)
    assert message in str(caught.value)


def test_tied_embeddings_in_a_pipeline() -> None:
    tied = Decoder(vocab=96, layers=4, dim=48, heads=6, tied=True)
    parallel = Parallel(pipeline=2, microbatches=2)
    with pytest.raises(ConfigError, match=r"^model.tied: embedding and head lie in different pipeline stages"):
        refuse_dense(parallel, lay_out(parallel, 2), tied, context=30)
    refuse_dense(Parallel(tensor=2), lay_out(Parallel(tensor=2), 2), tied, context=30)


def test_heads_that_neither_divide_nor_are_replicated_evenly() -> None:
    model = Decoder(vocab=96, layers=4, dim=96, heads=12, kv_heads=4, hidden=96)
    parallel = Parallel(tensor=6)
    with pytest.raises(ConfigError, match="6 ranks and 4 key-value heads"):
        refuse_dense(parallel, lay_out(parallel, 6), model, context=30)


LINEAR = {"weight": "column", "bias": "column"}
WRONG_CUTS: list[tuple[dict[str, Any], str]] = [
    (
        {"cuts": {"wieght": "column"}},
        "model Mine: its piece 'block' cuts 'wieght', a weight that it does not have;",
    ),
    ({"cuts": {"up.weight": "row"}, "leave": ("",)}, "cuts 'up.weight', a weight that it does not have; did you mean"),
    ({"cuts": LINEAR, "enter": ("inner",)}, "names 'inner' in enter, a module that it does not have. It has none"),
    ({"cuts": LINEAR, "norms": ("norm",)}, "names 'norm' in norms, a module that it does not have"),
    ({"cuts": LINEAR, "leave": ("",)}, "sums what '' gives over the tensor ranks, but no weight of it is cut by 'row'"),
    ({"cuts": {"weight": "row"}, "leave": ("",)}, "2 does not divide dim 1 of block.weight, 5, which is cut by 'row'"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG_CUTS)
def test_a_cut_that_would_silently_train_another_model(fields: dict[str, Any], message: str) -> None:
    piece = Piece(name="block", build=lambda: nn.Linear(5, 4), cost=1.0, **fields)
    blueprint = Blueprint(pieces=(piece,), objective=Pointwise())
    with pytest.raises(ConfigError) as caught:
        refuse(Parallel(tensor=2), Mesh(1, 1, 2), blueprint, SGD(), on_gpu=False, global_batch=8, model="Mine")
    assert message in str(caught.value)


def test_cuts_that_fit_are_no_reason() -> None:
    piece = Piece(name="block", build=lambda: nn.Linear(5, 4), cost=1.0, cuts=LINEAR, enter=("",))
    blueprint = Blueprint(pieces=(piece,), objective=Pointwise())
    refuse(Parallel(tensor=2), Mesh(1, 1, 2), blueprint, SGD(), on_gpu=False, global_batch=8, model="Mine")
