"""Pooled tables that every rank has whole, against plain torch: each optimizer, beside tables that are split, under a
pipeline, and from and to checkpoints of layouts that split them."""

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rtrain.mesh import Parallel, TableLayout
from rtrain.optim import SGD, Adam, RowWiseAdagrad, SparseOptim
from rtrain.run import Run
from rtrain.training.replica import Replica
from tests.parallel.plain import Control, apart, plain_rows
from tests.parallel.proved import ENSEMBLE
from tests.parallel.proved import PARITY as PROVED
from tests.parallel.test_models import MODELS, PARITY, TABLES
from tests.parallel.test_models import SPARSE as PLAIN
from tests.parallel.worlds import SAVED, in_world, tiny, train, whole_tables

SPARSE: dict[str, SparseOptim] = PLAIN | {
    "sgd l2": SGD(lr=1.0, l2=0.02, clip_with_dense=True),
    "rowwise l2": RowWiseAdagrad(lr=0.2, eps=1e-4, l2=1e-3),
    "adam l2": Adam(lr=0.02, eps=1e-5, l2=0.02),
}
ALL = Parallel(dense="ddp", embeddings="data_parallel")
ONE = Parallel(zero_stage=1, embeddings="row_wise", tables=(TableLayout(table="item", embeddings="data_parallel"),))
SPLIT = Parallel(dense="ddp", embeddings="row_wise")
MOVED = ("adagrad", "rowwise", "adam")


def run_of(rows: str, parallel: Parallel, sparse: str) -> Run:
    return tiny(rows, parallel, SPARSE[sparse], config=MODELS["dlrm"])


def staged(rows: str, parallel: Parallel) -> Run:
    return tiny(rows, parallel, SGD(lr=1.0), config=ENSEMBLE)


def trained(run: Run, **arguments: Any) -> Any:
    """Losses, the tables as rank 0 writes them, and whether all ranks have the same of those that all have."""
    kept: list[Replica] = []
    losses = train(run, before_step=lambda step, replica: kept.__setitem__(slice(None), [replica]), **arguments)
    tables = kept[0].tables
    assert tables is not None
    same = []
    for table, chunk in tables._weights():
        if table.name in tables.replicated:
            everyone = [torch.empty_like(chunk.data) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, chunk.data.contiguous())
            same.append(all(of.equal(chunk.data) for of in everyone))
    return losses, whole_tables(kept[0]), same


def chosen(size: int, seed: str) -> list[str]:
    """Optimizers with which a world trains: of two ranks all; of one and of four a draw, one of which moves."""
    if size == 2 or not seed:
        return list(SPARSE)
    draw = random.Random(f"{seed} {size}")
    return [draw.choice(MOVED), *draw.sample([sparse for sparse in SPARSE if sparse not in MOVED], 2)]


def everything(rows: str, folder: str, seed: str) -> dict[str, Any]:
    size, found = dist.get_world_size(), dict[str, Any]()
    for sparse in chosen(size, seed):
        whole = f"{folder}/{size} {sparse}"
        found[f"all {sparse}"] = trained(run_of(rows, ALL, sparse), save_to=whole if sparse in MOVED else "")
        found[f"one {sparse}"] = trained(run_of(rows, ONE, sparse))
        if sparse in MOVED:
            train(run_of(rows, SPLIT, sparse), save_to=f"{whole} split")
            found[f"to split {sparse}"] = trained(run_of(rows, SPLIT, sparse), load_from=whole)
            found[f"from split {sparse}"] = trained(run_of(rows, ALL, sparse), load_from=f"{whole} split")
    if size == 2:
        stages = Parallel(data=1, pipeline=2, microbatches=2, zero_stage=1, embeddings="data_parallel")
        found["stages"] = trained(staged(rows, stages))
    return found


@pytest.fixture(scope="module")
def found(rows: str, tmp_path_factory: pytest.TempPathFactory, seed: str) -> dict[int, list[dict[str, Any]]]:
    folder = str(tmp_path_factory.mktemp("kept"))
    return {size: in_world(size, everything, rows, folder, seed) for size in (1, 2, 4)}


@pytest.fixture(scope="module")
def control(rows: str) -> dict[str, Control]:
    return {sparse: plain_rows(run_of(rows, ALL, sparse)) for sparse in SPARSE}


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("layout", ["all", "one"])
def test_whole_everywhere_is_one_process(layout: str, sparse: str, found: Any, control: Any, seed: str) -> None:
    for ranks in [ranks for size, ranks in found.items() if sparse in chosen(size, seed)]:
        losses, tables, same = ranks[0][f"{layout} {sparse}"]
        assert same == [True] * (2 if layout == "all" else 1)
        off, weights = apart((losses, tables), control[sparse])
        assert off < PARITY and weights < TABLES


@pytest.mark.parametrize("sparse", MOVED)
@pytest.mark.parametrize("way", ["to", "from"])
def test_a_checkpoint_goes_to_and_from_layouts_that_split(
    way: str, sparse: str, found: Any, control: Any, seed: str
) -> None:
    for ranks in [ranks for size, ranks in found.items() if sparse in chosen(size, seed)]:
        losses, tables, _ = ranks[0][f"{way} split {sparse}"]
        assert len(losses) == len(control[sparse][0]) - SAVED
        off, weights = apart((losses, tables), control[sparse])
        assert off < PARITY and weights < TABLES


def test_the_stages_of_a_pipeline_look_up_a_share_each(rows: str, found: Any) -> None:
    losses, tables, same = found[2][0]["stages"]
    off, weights = apart((losses, tables), plain_rows(staged(rows, Parallel(dense="ddp"))))
    assert off < PROVED and weights < PROVED and same and all(same)
