"""Every ranking model, its tables sharded and its tower wrapped, trains to the losses of plain torch.

The control knows neither TorchRec's sharding nor its fused optimizers: autograd over whole tables, and the
optimizers written out. The tolerance is the house's: 20 steps carry float32's last bit (6e-8 of a loss of 0.7)
along, and Adam divides by roots of small second moments; a wrong shard, mask or scale shows as 1e-3.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rtrain.mesh import Parallel
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.mmoe import MMoE
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import TableOptions, initial_rows
from rtrain.optim import SGD, Adagrad, RowWiseAdagrad, SparseOptim
from rtrain.schema import Schema
from tests.parallel.worlds import DENSE_OPTIM, SCHEMA, STEPS, TWO_LABELS, Case, global_batch, run_cases

PARITY = 2e-6  # seen here: 4.2e-7 at most
MODELS: dict[str, RankingConfig] = {
    "dlrm": DLRM(dim=8, bottom=(8,), top=(16,), tables=(TableOptions(table="item", pooling="sum"),)),
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
    "din": DIN(dim=8, history="seen", candidate="item", attention=(8,), top=(16,)),
}
SPARSE: dict[str, SparseOptim] = {"sgd": SGD(lr=1.0), "adagrad": Adagrad(lr=0.1), "rowwise": RowWiseAdagrad(lr=0.2)}
LAYOUTS = {
    "ddp": (Parallel(dense="ddp"), "rowwise"),
    "zero1 row_wise": (Parallel(zero_stage=1, embeddings="row_wise"), "rowwise"),
    "zero3 table_wise": (Parallel(zero_stage=3, embeddings="table_wise"), "sgd"),
}
# What a world of one runs: there, ZeRO has nothing to partition and rows nothing to split.
ALONE = ("ddp", "row_wise adagrad", "column_wise sgd")
DIN_ONLY = {
    "row_wise adagrad": (Parallel(dense="ddp", embeddings="row_wise"), "adagrad"),
    "column_wise adagrad": (Parallel(dense="ddp", embeddings="column_wise"), "adagrad"),
    "column_wise sgd": (Parallel(dense="ddp", embeddings="column_wise"), "sgd"),
}


def schema_of(config: RankingConfig) -> Schema:
    return TWO_LABELS if config.several_labels else SCHEMA


def layouts(model: str, size: int) -> dict[str, tuple[Parallel, str]]:
    both = LAYOUTS | (DIN_ONLY if model == "din" else {})
    return both if size > 1 else {name: both[name] for name in ALONE if name in both}


def plain(config: RankingConfig, sparse: SparseOptim) -> list[float]:
    """One process, no sharding, nothing fused."""
    schema = schema_of(config)
    model = config.build(schema, seed=0)
    tables = dict(model.tables.named_parameters())
    for table in config.table_list(schema):
        tables[f"{table.path}.weight"].data.copy_(initial_rows(table, 0, 0, table.rows))
    states = {name: torch.zeros_like(p) for name, p in tables.items()}
    adam = DENSE_OPTIM.build(model.tower.parameters())
    losses = []
    for step in range(STEPS):
        batch = global_batch(step, schema)
        loss = by_hand(model(batch), batch.label, config.loss_weights(schema))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.tower.parameters(), DENSE_OPTIM.clip_norm)
        adam.step()
        for name, parameter in tables.items():
            assert parameter.grad is not None
            parameter.data -= sparse.lr * descent(sparse, states[name], parameter.grad)
        losses.append(loss.item())
    return losses


def by_hand(logits: Tensor, labels: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Every task's loss over the rows that have its label, weighted, over the number of all rows."""
    total = torch.zeros(())
    for weight, z, y in zip(weights, logits.reshape(len(labels), -1).T, labels.reshape(len(labels), -1).T, strict=True):
        here = ~y.isnan()
        total = total - weight * (y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log())[here].sum()
    return total / len(labels)


def descent(optim: SparseOptim, state: Tensor, grad: Tensor) -> Tensor:
    """What a table's optimizer takes off its rows, times the learning rate."""
    if isinstance(optim, SGD):
        return grad
    squares = grad.square()
    state += squares.mean(1, keepdim=True) if isinstance(optim, RowWiseAdagrad) else squares
    return grad / (state.sqrt() + 1e-8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def control() -> dict[str, list[float]]:
    wanted = {(model, sparse) for model in MODELS for _, sparse in LAYOUTS.values()}
    wanted |= {("din", sparse) for _, sparse in DIN_ONLY.values()}
    return {f"{model} {sparse}": plain(MODELS[model], SPARSE[sparse]) for model, sparse in sorted(wanted)}


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, dict[str, list[float]]]:
    """World size -> case -> losses; each world is spawned once."""
    worlds: dict[int, dict[str, list[float]]] = {}
    for size in (2, 1):
        cases: list[Case] = []
        for model, config in MODELS.items():
            for layout, (parallel, sparse) in layouts(model, size).items():
                name = f"{model}: {layout}"
                saved = {"save_to": str(folder / f"{size} {name}")} if model == "din" else {}
                made = {"config": config, "schema": schema_of(config), "parallel": parallel, "sparse": SPARSE[sparse]}
                cases.append((name, made | saved))
        # What two ranks saved with rows split is read by one rank, and by columns what was split by rows.
        for saved, layout in (("zero1 row_wise", "ddp"), ("row_wise adagrad", "column_wise adagrad")):
            parallel, sparse = (LAYOUTS | DIN_ONLY)[layout]
            arguments = {"config": MODELS["din"], "parallel": parallel, "sparse": SPARSE[sparse], "steps": (10, STEPS)}
            cases.append((f"{saved} -> {layout}", arguments | {"load_from": str(folder / f"2 din: {saved}")}))
        worlds[size] = run_cases(size, cases)
    return worlds


def far(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_sharded_is_unsharded(
    model: str, found: dict[int, dict[str, list[float]]], control: dict[str, list[float]]
) -> None:
    worst = {
        f"{size} {layout}": far(cases[f"{model}: {layout}"], control[f"{model} {sparse}"])
        for size, cases in found.items()
        for layout, (_, sparse) in layouts(model, size).items()
    }
    assert max(worst.values()) < PARITY, worst


@pytest.mark.parametrize("model", MODELS)
def test_the_control_learns(model: str, control: dict[str, list[float]]) -> None:
    losses = control[f"{model} rowwise"]  # the batches repeat every five steps
    assert sum(losses[15:]) < sum(losses[:5]) - 0.1


def test_sequence_tables_resume_at_any_layout(
    found: dict[int, dict[str, list[float]]], control: dict[str, list[float]]
) -> None:
    for cases in found.values():
        assert far(cases["zero1 row_wise -> ddp"], control["din rowwise"][10:]) < PARITY
        assert far(cases["row_wise adagrad -> column_wise adagrad"], control["din adagrad"][10:]) < PARITY
