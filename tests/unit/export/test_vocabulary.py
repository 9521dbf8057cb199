"""A run on values of a vocabulary's file: requests hold the values, and the export needs no file beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data import vocabularies
from rtrain.data.interactions import Interactions
from rtrain.data.vocabularies import vocabulary_of
from rtrain.duration import Duration
from rtrain.errors import CheckpointError, ConfigError
from rtrain.export.artifact import Predictor
from rtrain.export.column import predict_column
from rtrain.export.request import rows_of
from rtrain.metrics import AUC
from rtrain.models.dlrm import DLRM
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Run
from rtrain.schema import Dense, Id, IdList, Schema
from tests.unit.training.jobs import train

ROWS, KNOWN = 2000, 12


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The label is 1 of words of even length; two words in ten are not in the vocabulary, some rows have none."""
    draw = np.random.default_rng(0)
    words = [f"w{'x' * n}" for n in range(KNOWN)]
    ids = np.where(draw.random(ROWS) < 0.2, 0, draw.integers(1, KNOWN + 1, ROWS))
    missing = draw.random(ROWS) < 0.5
    values = [words[i - 1] if i else None if gone else f"new {n}" for n, (i, gone) in enumerate(zip(ids, missing))]  # noqa: B905
    columns = {
        "word": values,
        "number": ids,
        "several": [[words[i] for i in draw.integers(0, KNOWN, draw.integers(0, 3))] + ["?"] for _ in range(ROWS)],
        "x": draw.normal(size=ROWS),
        "label": (ids % 2 == 0).astype(float),
        "at": np.arange(ROWS),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"value": words}), tmp_path / "words.parquet")
    return tmp_path


@pytest.mark.parametrize("numbered", [False, True])
def test_requests_hold_values_and_are_answered_as_the_trainer_does(
    place: Path, numbered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = vocabulary_of(f"{place}/words.parquet")
    name = "number" if numbered else "word"
    features = (
        Id(name=name, vocabulary_file=known, numbered=numbered),
        IdList(name="several", vocabulary_file=known),
        Dense(name="x"),
    )
    run = Run(
        name="words", model=DLRM(dim=8, bottom=(8,), top=(16,)),
        data=Interactions(source=f"{place}/rows.parquet", schema=Schema(features=features, time="at")),
        optim=AdamW(lr=1e-2), sparse_optim=RowWiseAdagrad(lr=0.1), global_batch=64, duration=Duration(epochs=6),
        evaluation=Evaluation(monitor="auc"), metrics=(AUC(),), storage=f"{place}/runs",
    )  # fmt: skip
    done = train(run)
    assert done["test"]["auc"] > 0.95 and done["baseline_auc"] > 0.95
    stored = (Path(run.folder) / "run.json").read_text()
    assert known.sha256 in stored and "wxxx" not in stored
    recorded = json.loads((Path(run.folder) / "predictions.json").read_text())
    asked = rows_of(run.data.open().raw("test", 0, len(recorded["rows"])), run.data.schema)
    assert {type(row[name]) for row in asked if name in row} == {str}  # what the trainer read as numbers, too
    shutil.move(f"{place}/words.parquet", f"{place}/gone.parquet")
    monkeypatch.setattr(vocabularies, "_KNOWN", {})
    predictor = Predictor(str(done["export"]))
    rows: list[dict[str, Any]] = [predictor.rows(**row).model_dump() for row in asked]
    assert np.abs(np.array(predictor.predict(rows)) - recorded["predictions"]).max() < 1e-6
    taught = predict_column(str(done["export"]), f"{place}/rows.parquet", f"{place}/taught.parquet")
    first, _ = run.data.open().ranges["test"]
    logits = pq.read_table(taught)["teacher_logit"].to_numpy()[first : first + len(asked)]
    assert np.abs(1 / (1 + np.exp(-logits)) - recorded["predictions"]).max() < 1e-6


def test_an_export_whose_vocabulary_was_altered_is_refused(place: Path) -> None:
    known = vocabulary_of(f"{place}/words.parquet")
    schema = Schema(features=(Id(name="word", vocabulary_file=known), Dense(name="x")), time="at")
    run = Run(
        name="words", model=DLRM(dim=4, bottom=(4,), top=(4,)), global_batch=64, duration=Duration(steps=2),
        data=Interactions(source=f"{place}/rows.parquet", schema=schema), storage=f"{place}/runs",
        evaluation=Evaluation(monitor="auc"), metrics=(AUC(),),
    )  # fmt: skip
    export = Path(str(train(run)["export"]))
    (file,) = export.glob("vocabulary-*.parquet")
    pq.write_table(pa.table({"value": ["other"]}), file)
    with pytest.raises(CheckpointError, match=rf"{file.name} is missing or was altered"):
        Predictor(str(export))
    pq.write_table(pa.table({"value": ["other", "words"]}), place / "words.parquet")
    data = Interactions(
        source=f"{place}/rows.parquet",
        schema=Schema(
            features=(Id(name="word", vocabulary_file=vocabulary_of(f"{place}/words.parquet")), Dense(name="x")),
            time="at",
        ),
    )
    changed = Run(
        name="words", model=run.model, data=data, global_batch=64, duration=Duration(steps=4), storage=run.storage,
        evaluation=run.evaluation, metrics=run.metrics,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"vocabulary of another version: .*words.parquet has sha256"):
        train(changed)
