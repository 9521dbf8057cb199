"""What hours and ages tell is learned, exported, and answered for requests that have moments in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.errors import DataError
from rtrain.export.artifact import Predictor
from rtrain.export.request import rows_of
from rtrain.mesh import Parallel
from rtrain.metrics import AUC
from rtrain.models.dlrm import DLRM
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Run
from rtrain.schema import Age, Id, Moment, Schema
from tests.unit.training.jobs import train

ROWS = 3000
SCHEMA = Schema(
    features=(
        Id(name="item", entity="item", rows=10),
        Moment(name="hour", part="hour", zone="Europe/Berlin"),
        Moment(name="day", part="weekday", column="joined", missing="own"),
        Age(name="age", entity="item", column="released", mean=10.0, std=4.0),
    ),
    time="at",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Half a year of one item; the label is 1 of the old from noon on in Berlin, and of the new before it."""
    draw = np.random.default_rng(0)
    at = np.sort(1_690_000_000 + draw.integers(0, 180 * 86_400, ROWS))
    old = draw.integers(0, 2, ROWS)
    released = at - np.where(old, draw.integers(10**7, 10**8, ROWS), draw.integers(0, 3600, ROWS))
    late = np.array([t.hour >= 12 for t in pa.array(at).cast(pa.timestamp("s", "Europe/Berlin")).to_pylist()])
    columns = {
        "item": np.full(ROWS, 5),
        "joined": pa.array([None if x < 0.1 else x * 1e9 for x in draw.random(ROWS)]),
        "released": pa.array(released * 1000).cast(pa.timestamp("ms")),
        "at": pa.array(at).cast(pa.timestamp("s", "UTC")),
        "label": (late == old).astype(float),
    }
    path = tmp_path_factory.mktemp("made") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_what_hours_and_ages_tell_is_learned_and_served(source: str) -> None:
    run = Run(
        name="made",
        model=DLRM(dim=8, bottom=(16,), top=(32,)),
        data=Interactions(source=source, schema=SCHEMA),
        optim=AdamW(lr=1e-2),
        sparse_optim=RowWiseAdagrad(lr=0.1),
        parallel=Parallel(dense="ddp"),
        global_batch=64,
        duration=Duration(epochs=12),
        evaluation=Evaluation(monitor="auc", slices=("hour",)),
        metrics=(AUC(),),
        storage=str(Path(source).parent / "runs"),
    )
    done = train(run)
    assert done["test"]["auc"] > 0.95  # which neither tells alone
    assert done["baseline_auc"] > 0.95  # trees, which read both too
    assert {"auc[hour=0]", "auc[hour=13]"} <= set(done["test"])
    recorded = json.loads((Path(run.folder) / "predictions.json").read_text())
    asked = rows_of(run.data.open().raw("test", 0, len(recorded["rows"])), SCHEMA)
    assert set(asked[0]) <= {"item", "joined", "released", "at"} and isinstance(asked[0]["released"], int)
    assert any("joined" not in row for row in asked)
    predictor = Predictor(str(done["export"]))
    rows: list[dict[str, Any]] = [predictor.rows(**row).model_dump() for row in asked]
    assert predictor.predict(rows) == pytest.approx(recorded["predictions"], abs=1e-5)
    # The same rows, asked about twelve hours later, of things as old: the other half of the day.
    later = [row | {"at": row["at"] + 43_200, "released": row["released"] + 43_200} for row in rows]
    turned = (np.array(predictor.predict(later)) > 0.5) != (np.array(recorded["predictions"]) > 0.5)
    assert turned.mean() > 0.8
    with pytest.raises(DataError, match="request: feature 'age': its 'released' is .* at row 0, behind"):
        predictor.predict([rows[0] | {"released": rows[0]["at"] + 1}])
