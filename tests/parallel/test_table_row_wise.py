"""Pooled tables whose rows lie on the ranks of one node, against plain torch; four ranks also as two nodes of two."""

import os
from typing import Any

import pytest
import torch.distributed as dist

from rtrain.mesh import Parallel, TableLayout
from rtrain.run import Run
from rtrain.training.replica import Replica
from tests.parallel.plain import Control, apart, plain_rows
from tests.parallel.test_models import MODELS, PARITY, SPARSE, TABLES
from tests.parallel.worlds import SAVED, in_world, tiny, train, whole_tables

WORLDS = {"two": (2, 2), "a node of four": (4, 4), "nodes of two": (4, 2)}
"""Ranks, and ranks of each node."""
ALL = Parallel(dense="ddp", embeddings="table_row_wise")
ONE = Parallel(zero_stage=1, tables=(TableLayout(table="item", embeddings="table_row_wise"),))
LAYOUTS = {f"all {sparse}": (ALL, sparse) for sparse in SPARSE} | {"one sgd": (ONE, "sgd")}


def run_of(rows: str, parallel: Parallel, sparse: str) -> Run:
    return tiny(rows, parallel, SPARSE[sparse], config=MODELS["dlrm"])


def everything(rows: str, folder: str, local: int) -> dict[str, Any]:
    os.environ["LOCAL_WORLD_SIZE"], os.environ["LOCAL_RANK"] = str(local), str(int(os.environ["RANK"]) % local)
    found: dict[str, Any] = {}
    kept: list[Replica] = []

    def trained(run: Run, **arguments: Any) -> Any:
        losses = train(run, before_step=lambda step, replica: kept.__setitem__(slice(None), [replica]), **arguments)
        return losses, whole_tables(kept[0])

    for name, (parallel, sparse) in LAYOUTS.items():
        save_to = f"{folder}/{local}-{dist.get_world_size()}" if name == "all adagrad" else ""
        found[name] = trained(run_of(rows, parallel, sparse), save_to=save_to)
        assert kept[0].tables is not None
        mine = [c for c in kept[0].tables.chunks() if c.name.startswith("model.")]
        found[f"{name} holds"] = {c.name.split(".")[-2]: list(c.data.shape) for c in mine}
    moved = run_of(rows, Parallel(dense="ddp", embeddings="column_wise"), "adagrad")
    found["moved"] = trained(moved, load_from=f"{folder}/{local}-{dist.get_world_size()}")
    return found


@pytest.fixture(scope="module")
def found(rows: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = str(tmp_path_factory.mktemp("kept"))
    return {name: in_world(size, everything, rows, folder, local) for name, (size, local) in WORLDS.items()}


@pytest.fixture(scope="module")
def control(rows: str) -> dict[str, Control]:
    return {sparse: plain_rows(run_of(rows, ALL, sparse)) for sparse in SPARSE}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_is_unsharded(layout: str, found: Any, control: Any) -> None:
    for ranks in found.values():
        losses, tables = apart(ranks[0][layout], control[LAYOUTS[layout][1]])
        assert losses < PARITY and tables < TABLES


def test_any_layout_resumes_from_it(found: Any, control: Any) -> None:
    for ranks in found.values():
        assert len(ranks[0]["moved"][0]) == len(control["adagrad"][0]) - SAVED
        losses, tables = apart(ranks[0]["moved"], control["adagrad"])
        assert losses < PARITY and tables < TABLES


def test_a_table_lies_on_one_node(found: Any) -> None:
    for name, (size, local) in WORLDS.items():
        for table, rows in (("user", 50), ("item", 71)):
            held = [rank["all sgd holds"].get(table, [0])[0] for rank in found[name]]
            nodes = [sum(held[first : first + local]) for first in range(0, size, local)]
            assert sorted(nodes) == [0] * (size // local - 1) + [rows] and held.count(0) == size - local
