"""Slices, groups of raw columns and the rows that a run keeps, over several ranks as over one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.interactions import Interactions
from rtrain.evaluation.columns import Columns
from rtrain.evaluation.rows import TestRows
from rtrain.evaluation.scoring import examine, scan
from rtrain.mesh import lay_out
from rtrain.metrics import AUC, GAUC, NDCG
from rtrain.models.dlrm import DLRM
from rtrain.run import Cluster, Evaluation, Run
from rtrain.schema import Dense, Id, Schema
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.world import join
from tests.parallel.worlds import in_world

BY = ("user", "second")
FEATURES = (Id(name="user", entity="user", rows=30), Id(name="item", entity="item", rows=40), Dense(name="number"))
SCHEMA = Schema(features=FEATURES, group="user", time="when")


def examined(source: str) -> dict[str, Any]:
    """What rank 0 finds of the test split, and the file that it would write."""
    world = join(gpu=False, timeout_s=60)
    run = Run(
        name="tiny",
        model=DLRM(dim=16, bottom=(8,), top=(8,)),
        data=Interactions(source=source, schema=SCHEMA),
        evaluation=Evaluation(batch=50, slices=("item", "number")),
        metrics=(AUC(), GAUC(by=BY), NDCG(k=3, by=BY)),
        cluster=Cluster(workers=world.size, memory_gb_per_worker=1.0),
    )
    run = replace(run, parallel=replace(run.parallel, dense="ddp", embeddings="row_wise"))
    data, mesh = open_data(run), lay_out(run.parallel, world.size)
    replica = Replica(run, mesh, world, stored=None, training=False)
    batches = scan(run, data, "test", mesh, world.rank)
    found = examine(replica, batches, run.metrics, Columns(data, "test"), grouped=True, slices=run.evaluation.slices)
    file = found.rows.to_parquet(first=data.numbers("test").start)
    return {"values": found.values, "slices": found.slices, "file": file.hex()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw, count = np.random.default_rng(0), 6000
    path = str(tmp_path_factory.mktemp("rows") / "rows.parquet")
    columns: dict[str, Any] = {"user": draw.integers(0, 30, count), "item": draw.zipf(1.3, count) % 40}
    columns |= {"when": np.arange(count), "number": draw.normal(size=count)}
    columns |= {"second": draw.integers(0, 5, count), "label": (draw.random(count) < 0.4).astype(np.float64)}
    pq.write_table(pa.table(columns), path, row_group_size=700)
    return path


def test_two_ranks_find_what_one_finds(source: str) -> None:
    one, two = (in_world(size, examined, source)[0] for size in (1, 2))
    assert set(one["values"]) == {"auc", "gauc[user,second]", "ndcg@3[user,second]"}
    assert "auc[item=other]" in one["slices"] and len([n for n in one["slices"] if n.startswith("auc[item")]) == 21
    assert len([n for n in one["slices"] if n.startswith("auc") and "number" in n]) == 5
    # The scores differ in float32's last bit at most, by which no order of rows changes here.
    for kind in ("values", "slices"):
        assert two[kind] == pytest.approx(one[kind], abs=1e-9)
    rows = [TestRows.read(bytes.fromhex(found["file"]))[""] for found in (one, two)]
    assert rows[0].same_rows(rows[1]) and len(rows[0].scored.labels) == 600
