"""What is told by times alone is learned, and an export answers so for requests that have them in seconds."""

import json
from dataclasses import replace
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
from rtrain.metrics import AUC
from rtrain.models.hstu_ranker import HSTURanker
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Run
from rtrain.schema import Id, IdSequence, Schema
from rtrain.vector import Embedding
from tests.unit.training.jobs import train

ROWS = 3000
SCHEMA = Schema(
    features=(
        Id(name="item", entity="item", rows=10),
        IdSequence(name="history", rows=10, table="item", max_length=3, times="had"),
        Embedding(name="text", entity="item", dim=4, missing="zeros"),
    ),
    time="at",
)
MODEL = HSTURanker(dim=8, candidate="item", layers=1, heads=1, top=(16,), buckets=32, scale=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same two items, in milliseconds; the label is whether the last of them was within a minute."""
    draw = np.random.default_rng(0)
    at = 1_700_000_000_000 + np.arange(ROWS) * 997
    recent = draw.integers(0, 2, ROWS)
    last = at - np.where(recent, draw.integers(0, 60_000, ROWS), draw.integers(600_000, 60_000_000, ROWS))
    had = np.stack([last - draw.integers(0, 10**8, ROWS), last], axis=1).ravel()
    offsets = np.arange(ROWS + 1) * 2
    columns = {
        "item": np.full(ROWS, 5),
        "history": [[1, 2]] * ROWS,
        "had": pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(had).cast(pa.timestamp("ms"))),
        "text": pa.array([None if x < 0.1 else [x, 1, -x, 0] for x in draw.random(ROWS)], pa.list_(pa.float32(), 4)),
        "at": pa.array(at).cast(pa.timestamp("ms")),
        "label": recent,
    }
    path = tmp_path_factory.mktemp("timed") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def run_of(source: str, model: HSTURanker, name: str) -> Run:
    return Run(
        name=name,
        model=model,
        data=Interactions(source=source, schema=SCHEMA),
        optim=AdamW(lr=2e-2),
        sparse_optim=RowWiseAdagrad(lr=0.05),
        parallel=Parallel(dense="ddp"),
        global_batch=64,
        duration=Duration(epochs=10),
        evaluation=Evaluation(monitor="auc"),
        metrics=(AUC(),),
        storage=str(Path(source).parent / "runs"),
    )


def test_what_times_alone_tell_is_learned_and_served(source: str) -> None:
    run = run_of(source, MODEL, "timed")
    done = train(run)
    assert done["test"]["auc"] > 0.9
    blind = train(run_of(source, replace(MODEL, buckets=0), "blind"))
    assert blind["test"]["auc"] < 0.65  # of 300 rows that nothing tells apart
    recorded = json.loads((Path(run.folder) / "predictions.json").read_text())
    asked = rows_of(run.data.open().raw("test", 0, len(recorded["rows"])), SCHEMA)
    assert set(asked[0]) <= {"item", "history", "had", "text", "at"} and isinstance(asked[0]["had"][0], int)
    predictor = Predictor(str(done["export"]))
    rows: list[dict[str, Any]] = [predictor.rows(**row).model_dump() for row in asked]
    assert predictor.predict(rows) == pytest.approx(recorded["predictions"], abs=1e-5)
    # The same histories, asked about an hour later: most of those that were recent are so no more.
    recent = np.array(recorded["predictions"]) > 0.5
    later = np.array(predictor.predict([row | {"at": row["at"] + 3600} for row in rows]))
    assert recent.any() and (later[recent] > 0.5).mean() < 0.1
