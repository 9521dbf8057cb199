"""What weights of ids alone tell is learned, and an export answers so for requests that have them."""

import json
from dataclasses import replace
from pathlib import Path

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
from rtrain.models.dcnv2 import DCNv2
from rtrain.nn.tables import TableOptions
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Run
from rtrain.schema import Id, IdList, Schema
from tests.unit.training.jobs import train

ROWS = 2000
SCHEMA = Schema(
    features=(Id(name="item", rows=10), IdList(name="tags", rows=4, weights="much"), IdList(name="mean", rows=4)),
    time="at",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same two tags; the label is which of them weighs more."""
    much = np.random.default_rng(0).normal(size=(ROWS, 2))
    columns = {
        "item": np.full(ROWS, 5),
        "tags": [[1, 2]] * ROWS,
        "much": much.tolist(),
        "mean": [[3]] * ROWS,
        "at": np.arange(ROWS),
        "label": (much[:, 0] > much[:, 1]).astype(float),
    }
    path = tmp_path_factory.mktemp("weighted") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def run_of(source: str, schema: Schema, name: str) -> Run:
    return Run(
        name=name,
        model=DCNv2(dim=4, layers=1, rank=None, deep=(8,), tables=(TableOptions(table="tags", pooling="sum"),)),
        data=Interactions(source=source, schema=schema),
        optim=AdamW(lr=2e-2),
        sparse_optim=RowWiseAdagrad(lr=0.1),
        parallel=Parallel(dense="ddp"),
        global_batch=64,
        duration=Duration(epochs=5),
        evaluation=Evaluation(monitor="auc"),
        metrics=(AUC(),),
        storage=str(Path(source).parent / "runs"),
    )


def test_what_weights_alone_tell_is_learned_and_served(source: str) -> None:
    run = run_of(source, SCHEMA, "weighted")
    done = train(run)
    assert done["test"]["auc"] > 0.95
    without = tuple(replace(f, weights="") if f.name == "tags" else f for f in SCHEMA.features)  # type: ignore[call-arg]
    assert train(run_of(source, replace(SCHEMA, features=without), "blind"))["test"]["auc"] == pytest.approx(0.5)
    recorded = json.loads((Path(run.folder) / "predictions.json").read_text())
    rows = rows_of(run.data.open().raw("test", 0, len(recorded["rows"])), SCHEMA)
    predictor = Predictor(str(done["export"]))
    asked = [predictor.rows(**row).model_dump() for row in rows]
    assert predictor.predict(asked) == pytest.approx(recorded["predictions"], abs=1e-6)
    turned = [row | {"much": row["much"][::-1]} for row in asked]
    expected = 1 - (np.array(recorded["predictions"]) > 0.5)
    assert ((np.array(predictor.predict(turned)) > 0.5) == expected).mean() > 0.9
    with pytest.raises(DataError, match="feature 'tags' has 2 ids at row 0, but 0 weights in 'much'"):
        predictor.predict([{name: value for name, value in asked[0].items() if name != "much"}])


def test_lists_of_lists_are_learned_from_and_answered_as_one_list(source: str, tmp_path: Path) -> None:
    flat = pq.read_table(source)
    columns = {"tags": [[[1], [2]]] * ROWS, "much": [[[a], [b]] for a, b in flat["much"].to_pylist()]}
    nested = flat.drop_columns(list(columns))
    for name, values in columns.items():
        nested = nested.append_column(name, pa.array(values))
    pq.write_table(nested, tmp_path / "rows.parquet")
    runs = [
        replace(run_of(where, SCHEMA, name), duration=Duration(epochs=1))
        for where, name in ((source, "flat"), (str(tmp_path / "rows.parquet"), "nested"))
    ]
    flat_done, nested_done = map(train, runs)
    told = [(Path(run.folder) / "predictions.json").read_text() for run in runs]
    assert told[0] == told[1] and nested_done["test"] == flat_done["test"]
    predictor, asked = Predictor(str(nested_done["export"])), json.loads(told[1])
    raw = runs[1].data.open().raw("test", 0, len(asked["rows"])).select(["item", "tags", "much", "mean"]).to_pylist()
    assert raw[0]["tags"] == [[1], [2]]
    checked = [predictor.rows(**row).model_dump() for row in raw]
    for rows in (raw, checked):
        assert predictor.predict(rows) == pytest.approx(asked["predictions"], abs=1e-6)
    with pytest.raises(DataError, match="request: much nests otherwise than tags. Let both nest alike"):
        predictor.predict([raw[0] | {"tags": [[1, 2], []]}])
