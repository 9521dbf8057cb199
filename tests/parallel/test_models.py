"""Every ranking model, its tables sharded and its tower wrapped, trains to the losses of plain torch.

The control knows neither TorchRec's sharding nor its fused optimizers: autograd over whole tables, and the
optimizers written out. The tolerance is the house's: 20 steps carry float32's last bit (6e-8 of a loss of 0.7)
along, and Adam divides by roots of small second moments; a wrong shard, mask or scale shows as 1e-3.
"""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rtrain.errors import ConfigError, RunFailed
from rtrain.mesh import Parallel, TableLayout, lay_out
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.mmoe import MMoE
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import Table, TableOptions
from rtrain.optim import SGD, Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.parallel.embeddings import ShardedTables, apply_tables
from rtrain.parallel.placement import bytes_per_rank
from rtrain.parallel.table_planning import placements, plan_tables
from rtrain.run import Run
from rtrain.schema import Id, IdList, Schema
from rtrain.training.replica import Replica
from tests.parallel.plain import Control, apart, plain_rows
from tests.parallel.worlds import SCHEMA, TWO_LABELS, Case, Tables, in_world, tiny, train, whole_tables

PARITY = 2e-6  # seen here: 4.2e-7 at most
TABLES = 1e-5  # of weights around 1; seen of Adam: 6.4e-7 at most
MODELS: dict[str, RankingConfig] = {
    "dlrm": DLRM(dim=16, bottom=(8,), top=(16,), tables=(TableOptions(table="item", pooling="sum"),)),
    "dcnv2 low rank": DCNv2(dim=8, layers=2, rank=4, deep=(16,)),
    "dcnv2 mixture": DCNv2(
        dim=8,
        layers=2,
        rank=4,
        experts=2,
        deep=(16,),
        structure="stacked",
        tables=(TableOptions(table="user", dim=16),),
    ),
    "dcnv2 whole": DCNv2(dim=8, layers=1, rank=None, deep=()),
    "deepfm": DeepFM(dim=8, deep=(16,)),
    "mmoe": MMoE(dim=8, experts=3, expert=(8,), towers=(8,), task_weights=(1.0, 0.5)),
    "ple": PLE(dim=8, levels=2, shared_experts=1, task_experts=2, expert=(8,), towers=(8,)),
    "din": DIN(dim=16, history="seen", candidate="item", attention=(8,), top=(16,)),
}
SPARSE: dict[str, SparseOptim] = {
    "sgd": SGD(lr=1.0),
    # eps: see test_retrieval.SPARSE; at 1e-8 two weights of a table came out 1.4e-5 off.
    "adagrad": Adagrad(lr=0.1, eps=1e-4),
    "rowwise": RowWiseAdagrad(lr=0.2),
    "adam": Adam(lr=0.02, betas=(0.9, 0.98), eps=1e-5),
}
Layouts = dict[str, tuple[Parallel, str]]
# Two ranks train every model under every wrapping that partitions something else.
WRAPPED: Layouts = {
    "ddp": (Parallel(dense="ddp"), "rowwise"),
    "zero1 row_wise": (Parallel(zero_stage=1, embeddings="row_wise"), "rowwise"),
    "zero3 table_wise": (Parallel(zero_stage=3, embeddings="table_wise"), "sgd"),
    "zero2 row_wise x3": (Parallel(zero_stage=2, embeddings="row_wise", microbatches=3), "rowwise"),
}
# Worlds of 1, 2 and 4 train lists that are summed (dlrm; `test_layouts` has the mean) and lists that stay
# sequences (din) at every sharding of the tables with every optimizer, but for what `parallel.legal` refuses:
# by columns, row-wise Adagrad would be another optimizer.
SHARDED: Layouts = {
    f"{how} {sparse}": (Parallel(dense="ddp", embeddings=how), sparse)
    for how in ("table_wise", "row_wise", "column_wise")
    for sparse in SPARSE
    if (how, sparse) != ("column_wise", "rowwise")
}
OF_EACH = (TableLayout(table="item", embeddings="row_wise"), TableLayout(table="user", embeddings="column_wise"))
SHARDED["each its own adagrad"] = (Parallel(dense="ddp", embeddings="table_wise", tables=OF_EACH), "adagrad")
LISTS = ("dlrm", "din")
# What two ranks saved with rows split is read where they are whole; by columns what was split by rows.
MOVES = {"zero1 row_wise": "ddp", "row_wise adagrad": "column_wise adagrad", "row_wise adam": "table_wise adam"}
BIG = 20_000


def schema_of(config: RankingConfig) -> Schema:
    return TWO_LABELS if config.several_labels else SCHEMA


def layouts(model: str, size: int) -> Layouts:
    """What is trained in a world of `size`; one rank alone has nothing that ZeRO could partition."""
    wrapped = WRAPPED if size == 2 else {"ddp": WRAPPED["ddp"]} if size == 1 else {}
    return wrapped | (SHARDED if model in LISTS else {})


def run_of(rows: str, model: str, parallel: Parallel, sparse: str) -> Run:
    config = MODELS[model]
    return tiny(rows, parallel, SPARSE[sparse], config=config, schema=schema_of(config))


def bytes_of_new_tensors() -> int:
    """Bytes of all memory behind the tensors that were made since `gc.freeze`."""
    # Not isinstance: that would wake lazy modules among the objects.
    storages = [x.untyped_storage() for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and not x.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def check_bytes(layouts: Layouts = SHARDED, options: tuple[TableOptions, ...] = ()) -> dict[str, tuple[int, int]]:
    """Layout -> bytes of the tables and their optimizer on this rank, as they are and as `plan` says."""
    schema = Schema(
        features=(
            Id(name="user", rows=BIG),
            Id(name="item", rows=BIG + 1),
            IdList(name="seen", rows=BIG + 1, table="item"),
        )
    )
    tables = DIN(dim=16, history="seen", candidate="item", tables=options).table_list(schema)
    rank, world = dist.get_rank(), dist.get_world_size()
    found = {}
    for name, (parallel, sparse) in layouts.items():
        optim = SPARSE[sparse]
        plan = plan_tables(
            tables,
            parallel,
            optim,
            world_size=world,
            local_world_size=world,
            device="cpu",
            batch_per_rank=8,
            memory_bytes_per_rank=2**30,
        )
        gc.freeze()
        sharded = ShardedTables(tables, ("user", "item", "seen"), plan, optim, torch.device("cpu"))
        held = bytes_of_new_tensors()
        del sharded
        mesh = lay_out(parallel, world)
        planned = bytes_per_rank(parallel, optim, placements(plan, tables), mesh, dense_parameters=[0] * world)[rank]
        found[name] = (held, planned["tables"] + planned["tables_optimizer"])
    gc.unfreeze()
    return found


def refused_for_the_smallest() -> str:
    """What each rank is told where one has no memory for the tables."""
    table = Table(name="user", rows=BIG, dim=16, features=("user",))
    memory = 2**10 if dist.get_rank() else 2**30
    with pytest.raises(ConfigError) as caught:
        apply_tables(
            (table,), ("user",), Parallel(), SPARSE["adagrad"], torch.device("cpu"),
            local_world_size=dist.get_world_size(), batch_per_rank=8, memory_bytes_per_rank=memory,
        )  # fmt: skip
    return str(caught.value)


def failed_of_all() -> str:
    """What each rank is told where rank 0's planner fails in a way that nobody thought of."""
    twice = tuple(Table(name="user", rows=8, dim=4, features=(f,)) for f in ("a", "b"))
    with pytest.raises(RunFailed) as caught:
        apply_tables(
            twice, ("a", "b"), Parallel(), SPARSE["adagrad"], torch.device("cpu"),
            local_world_size=dist.get_world_size(), batch_per_rank=8, memory_bytes_per_rank=2**30,
        )  # fmt: skip
    return str(caught.value)


def trained(**arguments: Any) -> tuple[list[float], Tables]:
    kept: list[Replica] = []

    def before(step: int, replica: Replica) -> None:
        kept[:] = [replica]

    return train(**arguments, before_step=before), whole_tables(kept[0])


def everything(cases: list[Case]) -> dict[str, Any]:
    return {
        "trained": {name: trained(**arguments) for name, arguments in cases},
        "bytes": check_bytes(),
        "refused": refused_for_the_smallest() if dist.get_world_size() == 2 else "",
        "failed": failed_of_all() if dist.get_world_size() == 2 else "",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def control(rows: str) -> dict[str, Control]:
    wanted = {(model, sparse) for model in MODELS for size in (1, 2) for _, sparse in layouts(model, size).values()}
    alone = Parallel(dense="ddp")
    return {f"{model} {sparse}": plain_rows(run_of(rows, model, alone, sparse)) for model, sparse in sorted(wanted)}


@pytest.fixture(scope="module")
def found(folder: Path, rows: str) -> dict[int, list[dict[str, Any]]]:
    """World size -> what each rank found; each world is spawned once."""
    worlds = {}
    for size in (2, 1, 4):
        cases: list[Case] = []
        for model in MODELS:
            for layout, (parallel, sparse) in layouts(model, size).items():
                name = f"{model}: {layout}"
                saved = model == "din" and size == 2 and layout in MOVES
                arguments = {"run": run_of(rows, model, parallel, sparse), "save_to": str(folder / layout) * saved}
                cases.append((name, arguments))
        for saved_by, layout in MOVES.items():
            arguments = {"run": run_of(rows, "din", *(WRAPPED | SHARDED)[layout]), "load_from": str(folder / saved_by)}
            cases.append((f"{saved_by} -> {layout}", arguments))
        worlds[size] = in_world(size, everything, cases)
    return worlds


@pytest.mark.parametrize("model", MODELS)
def test_sharded_is_unsharded(model: str, found: dict[int, list[dict[str, Any]]], control: dict[str, Control]) -> None:
    worst = {
        f"{size} {layout}": apart(ranks[0]["trained"][f"{model}: {layout}"], control[f"{model} {sparse}"])
        for size, ranks in found.items()
        for layout, (_, sparse) in layouts(model, size).items()
    }
    assert len(worst) == (5 + 3 * len(SHARDED) if model in LISTS else 5)
    assert max(losses for losses, _ in worst.values()) < PARITY, worst
    assert max(tables for _, tables in worst.values()) < TABLES, worst


@pytest.mark.parametrize("model", MODELS)
def test_the_control_learns(model: str, control: dict[str, Control]) -> None:
    losses, _ = control[f"{model} rowwise"]  # the batches repeat every five steps
    assert sum(losses[15:]) < sum(losses[:5]) - 0.1


def test_sequence_tables_resume_at_any_layout(
    found: dict[int, list[dict[str, Any]]], control: dict[str, Control]
) -> None:
    for ranks in found.values():
        for saved_by, layout in MOVES.items():
            optim = (WRAPPED | SHARDED)[layout][1]
            losses, tables = apart(ranks[0]["trained"][f"{saved_by} -> {layout}"], control[f"din {optim}"])
            assert losses < PARITY and tables < TABLES


def test_a_rank_holds_the_bytes_that_the_plan_says(found: dict[int, list[dict[str, Any]]]) -> None:
    for size, ranks in found.items():
        for layout in SHARDED:
            for number, rank in enumerate(ranks):
                held, planned = rank["bytes"][layout]
                # Beside weights and optimizer state each kernel has small buffers; 2 % is the bound.
                assert abs(held - planned) <= 0.02 * planned + 4096, f"{size} {layout} rank {number}"
            # Rows are split in blocks of the same size, so a rank may be given one row less.
            assert sum(rank["bytes"][layout][1] for rank in ranks) >= 2 * BIG * 16 * 4


def test_ranks_of_unequal_memory_plan_for_the_smallest_or_are_all_refused(
    found: dict[int, list[dict[str, Any]]],
) -> None:
    said = {of["refused"] for of in found[2]}
    assert len(said) == 1 and "do not fit in 0.0 MiB, what the dense part leaves on each of 2 ranks" in said.pop()


def test_a_planner_that_fails_ends_every_rank(found: dict[int, list[dict[str, Any]]]) -> None:
    """Where only rank 0 knew, the others would wait for its plan."""
    said = {of["failed"] for of in found[2]}
    assert len(said) == 1 and said.pop().startswith("rank 0 could not plan the tables: ")
