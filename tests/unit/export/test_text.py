"""Texts are learned from, exported with their tokenizer, and asked about as they are."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rtrain
from rtrain import text
from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor
from rtrain.export.request import rows_of
from rtrain.metrics import AUC
from rtrain.models.dlrm import DLRM
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Cluster, Evaluation, Run
from rtrain.schema import Dense, Schema
from rtrain.text import Text, TokenizerFile
from tests.unit.data.test_texts import trained

ROWS = 1500


def test_a_run_learns_from_texts_and_its_export_needs_no_file_of_elsewhere(tmp_path: Path) -> None:
    file = Path(trained(tmp_path))
    draw, likes = np.random.default_rng(0), np.random.default_rng(1).integers(0, 2, ROWS)
    pq.write_table(
        pa.table(
            {
                "x": draw.standard_normal(ROWS),
                "title": [None if n % 97 == 0 else f"the {'cat' if likes[n] else 'mat'} {n % 5}" for n in range(ROWS)],
                "query": [f"{'sat' if likes[n] else 'on'} {n % 3}" for n in range(ROWS)],
                "at": np.arange(ROWS),
                "label": likes.astype(float),
            }
        ),
        tmp_path / "rows.parquet",
    )

    def run() -> Run:
        schema = Schema(
            features=(
                Dense(name="x"),
                Text(name="title", entity="item", tokenizer=TokenizerFile(file=str(file))),
                Text(name="query", rows=50),
            ),
            time="at",
        )
        return Run(
            name="texts",
            model=DLRM(dim=8, bottom=(8,), top=(16,)),
            data=Interactions(source=str(tmp_path / "rows.parquet"), schema=schema),
            optim=AdamW(lr=1e-2),
            sparse_optim=RowWiseAdagrad(lr=0.1),
            global_batch=64,
            duration=Duration(epochs=2),
            cluster=Cluster(workers=1),
            evaluation=Evaluation(monitor="auc", boosting_rows=1000),
            metrics=(AUC(),),
            storage=str(tmp_path / "runs"),
        )

    first = run()
    done = rtrain.train(first, launcher="inline", quiet=True)
    assert done is not None and done.metrics["auc"] > 0.95
    recorded = json.loads((Path(first.folder) / "predictions.json").read_text())
    asked = rows_of(first.data.open().raw("test", 0, len(recorded["rows"])), first.data.facts)
    file.unlink()
    text._HELD.clear()  # as in a process of its own
    predictor = Predictor(done.export)
    rows = [predictor.rows(**row).model_dump() for row in asked]
    assert predictor.predict(rows) == pytest.approx(recorded["predictions"], abs=1e-5)
    cat, mat = predictor.predict([{"x": 0.0, "title": title, "query": ""} for title in ("the cat 9", "the mat 9")])
    assert cat > mat  # type: ignore[operator]
    (carried,) = Path(done.export).glob("tokenizer-*.json")
    assert carried.name in predictor.head["files"]
    Path(trained(tmp_path, 260)).rename(file)
    with pytest.raises(ConfigError, match="tokenizer of another version: .*300.json has sha256"):
        rtrain.train(rtrain.override(run(), {"duration.epochs": 3}), launcher="inline", quiet=True)
