"""Raw ids of any size and strings are learned, exported, and asked about as they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.export.artifact import Predictor
from rtrain.export.request import rows_of
from rtrain.mesh import Parallel
from rtrain.metrics import AUC, NDCG
from rtrain.models.dlrm import DLRM
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Run
from rtrain.schema import Dense, Id, IdList, Schema
from tests.unit.training.jobs import train

ROWS = 3000
SCHEMA = Schema(
    features=(
        Dense(name="x"),
        Id(name="user", entity="user", rows=64, hashed="words"),
        Id(name="item", entity="item", rows=4096, hashed="numbers"),
        IdList(name="seen", rows=4096, hashed="numbers", table="item"),
    ),
    group="user",
    time="at",
)


def test_raw_ids_are_learned_and_served(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    items = draw.integers(-(2**63), 2**63, 40, dtype=np.int64)
    which = draw.integers(0, 40, ROWS)
    columns = {
        "x": draw.standard_normal(ROWS),
        "user": pa.array([None if n % 50 == 0 else f"user-{n % 7}" for n in range(ROWS)]),
        "item": items[which],
        "seen": pa.array([items[draw.integers(0, 40, n % 3)] for n in range(ROWS)], pa.list_(pa.int64())),
        "at": np.arange(ROWS),
        "label": (which % 2).astype(float),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    run = Run(
        name="hashed",
        model=DLRM(dim=8, bottom=(8,), top=(16,)),
        data=Interactions(source=str(tmp_path / "rows.parquet"), schema=SCHEMA),
        optim=AdamW(lr=1e-2),
        sparse_optim=RowWiseAdagrad(lr=0.1),
        parallel=Parallel(dense="ddp"),
        global_batch=64,
        duration=Duration(epochs=4),
        evaluation=Evaluation(monitor="auc", slices=("user",)),
        metrics=(AUC(), NDCG(k=5)),
        storage=str(tmp_path / "runs"),
    )
    done = train(run)
    assert done["test"]["auc"] > 0.95 and done["test"]["auc[user=user-3]"] > 0.9
    recorded = json.loads((Path(run.folder) / "predictions.json").read_text())
    asked = rows_of(run.data.open().raw("test", 0, len(recorded["rows"])), SCHEMA)
    assert {row["item"] for row in asked} <= set(items.tolist()) and any("user" not in row for row in asked)
    predictor = Predictor(str(done["export"]))
    rows: list[dict[str, Any]] = [predictor.rows(**row).model_dump() for row in asked]
    assert predictor.predict(rows) == pytest.approx(recorded["predictions"], abs=1e-5)
