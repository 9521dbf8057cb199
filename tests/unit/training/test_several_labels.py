"""A whole job of two tasks in this process: metrics of each, checkpoint, export, and answers that hold for both."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import rtrain
from recipes.mmoe_movielens import run as recipe_run
from rtrain.data import clicks, sources
from rtrain.duration import Duration
from rtrain.export.artifact import Predictor
from rtrain.metrics import AUC
from rtrain.metrics.curves import auc
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from tests.unit.training.jobs import lines, train


@pytest.mark.parametrize("model", [recipe_run().model, PLE(dim=8, expert=(16,), towers=(8,))], ids=["mmoe", "ple"])
def test_two_tasks_from_data_to_answers(model: RankingConfig, tmp_path: Path) -> None:
    (file,) = Path(sources.get("ml-100k")).glob("*.parquet")
    clicks.sample(file, tmp_path / "all.parquet")
    pq.write_table(pq.read_table(tmp_path / "all.parquet").slice(0, 6000), tmp_path / "rows.parquet")
    run = rtrain.override(
        recipe_run(),
        {
            "model": model,
            "storage": str(tmp_path / "runs"),
            "data.source": str(tmp_path / "rows.parquet"),
            "parallel.dense": "ddp",
            "metrics": (AUC(),),
            "duration.epochs": 2,
            "handoff.serve_check": False,
            "handoff.rows": 600,
            "evaluation.every": Duration(epochs=1),
            "evaluation.monitor": "like_auc",
            "tracking.to": (),
        },
    )
    result = train(run)
    assert set(result["test"]) == {"auc", "like_auc"}
    valid = lines(run, "valid")
    assert [set(line) >= {"auc", "like_auc"} for line in valid] == [True, True]
    assert result["monitor"] == "like_auc"
    assert result["best_step"] == max(valid, key=lambda line: line["like_auc"])["step"]

    # The trainer's predictions of all test rows, one a label: the metrics by hand, and the export's own answers.
    said = json.loads((Path(run.folder) / "predictions.json").read_text())
    test = run.data.open().raw("test", 0, len(said["rows"]))
    assert len(said["rows"]) == run.data.open().rows("test")
    scores = np.array(said["predictions"])
    assert scores.shape == (len(test), 2)
    assert auc(scores[:, 0], test["click"].to_numpy()) == pytest.approx(result["test"]["auc"], abs=1e-9)
    rated = test["like"].is_valid().to_numpy()
    like = test["like"].drop_null().to_numpy()
    assert auc(scores[rated, 1], like) == pytest.approx(result["test"]["like_auc"], abs=1e-9)
    assert 0 < rated.sum() < len(rated)

    predictor = Predictor(result["export"])
    wanted = [f.name for f in run.data.schema.features]
    answers = predictor.predict(test.select(wanted).to_pylist())
    assert np.abs(np.array(answers) - scores).max() < 1e-6  # the same float32 products in batches of another size
