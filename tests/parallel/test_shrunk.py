"""L2 on every row of the tables in every step, done where a row is read: beside the dense form, in plain torch.

Of 50 to 71 rows a batch of 33 leaves many out, of which some are read again later and some never.
"""

from dataclasses import replace

import pytest

from rtrain.mesh import Parallel
from rtrain.optim import SGD, Adagrad, Adam, RowWiseAdagrad, Schedule, SparseOptim
from rtrain.parity import name_of, world_of
from rtrain.training.replica import Replica
from tests.parallel.plain import Control, apart, far
from tests.parallel.proved import PARITY, PROVED, write_data
from tests.parallel.worlds import Tables, in_world, train, whole_tables

FALLING = Schedule(decay="linear")
OPTIMS: dict[str, SparseOptim] = {
    "sgd": SGD(lr=0.5, l2=0.05, schedule=FALLING),
    "adagrad": Adagrad(lr=0.05, eps=1e-4, l2=2e-3),
    "rowwise": RowWiseAdagrad(lr=0.05, l2=2e-3, schedule=FALLING),
    # Of a dense gradient: all rows in every step, with nothing to catch up.
    "adam": Adam(lr=0.01, betas=(0.9, 0.98), eps=1e-5, l2=2e-3, schedule=FALLING, clip_with_dense=True),
}
CASES: tuple[tuple[str, Parallel], ...] = (
    ("sgd", Parallel(dense="ddp", embeddings="table_wise")),
    ("rowwise", Parallel(data=2, zero_stage=3, embeddings="row_wise")),
    ("adagrad", Parallel(data=2, dense="ddp", embeddings="column_wise")),
    ("adagrad", Parallel(data=1, tensor=2, zero_stage=1, embeddings="row_wise")),
    ("rowwise", Parallel(data=1, pipeline=2, microbatches=2, embeddings="table_wise")),
    ("adam", Parallel(dense="ddp", embeddings="table_wise")),
    ("adam", Parallel(data=2, zero_stage=3, embeddings="row_wise")),
    ("adam", Parallel(data=2, dense="ddp", embeddings="column_wise")),
    ("adam", Parallel(data=1, pipeline=2, microbatches=2, embeddings="row_wise")),
)
MODELS = ("pooled", "sasrec")
SAVED = 10
Trained = tuple[list[float], Tables]


def trained(name: str, optim: str, layout: Parallel, data: str, **stored: str) -> Trained:
    kept: list[Replica] = []

    def before(step: int, replica: Replica) -> None:
        kept[:] = [replica]

    losses = train(PROVED[name].run(layout, OPTIMS[optim], data), before_step=before, **stored)
    return losses, whole_tables(kept[0])


def everything(size: int, data: str, folder: str) -> dict[str, Trained]:
    """A checkpoint of the first world brings all rows up to its step, and goes on in the second one."""
    found = {}
    for name in MODELS:
        for optim, layout in CASES:
            if world_of(layout) == size:
                found[f"{name} {optim} {name_of(layout)}"] = trained(name, optim, layout, data)
        kept = f"{folder}/{name}"
        optim, layout = CASES[0] if size == 1 else ("sgd", Parallel(data=2, embeddings="row_wise"))
        stored = {"save_to": kept} if size == 1 else {"load_from": kept}
        found[f"{name} {optim} {'saved' if size == 1 else 'resumed'}"] = trained(name, optim, layout, data, **stored)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def found(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = str(tmp_path_factory.mktemp("kept"))
    return {k: v for size in (1, 2) for k, v in in_world(size, everything, size, data, folder)[0].items()}


def control(name: str, optim: SparseOptim, data: str) -> Control:
    proved = PROVED[name]
    return proved.plain(proved.run(Parallel(dense="ddp"), optim, data))


def test_rows_that_are_caught_up_are_those_of_the_dense_form(found: dict[str, Trained], data: str) -> None:
    assert len(found) == len(MODELS) * (len(CASES) + 2)
    controls = {f"{n} {o}": control(n, OPTIMS[o], data) for n in MODELS for o in OPTIMS}
    worst = {case: apart(trained, controls[" ".join(case.split()[:2])]) for case, trained in found.items()}
    assert all(max(pair) < PARITY for pair in worst.values()), worst


@pytest.mark.parametrize("optim", OPTIMS)
def test_without_it_other_tables_come_out(optim: str, data: str) -> None:
    """So that the comparison above would see rows that are not shrunk."""
    (_, with_it), (_, without) = (control("pooled", o, data) for o in (OPTIMS[optim], replace(OPTIMS[optim], l2=0.0)))
    assert all(far(with_it[name], without[name]) > 100 * PARITY for name in with_it)
