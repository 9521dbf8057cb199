"""A whole job whose label is a number and whose rows have weights: its metrics by hand, and its export's answers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor
from rtrain.mesh import Parallel
from rtrain.metrics import AUC, MAE, RMSE, LogLoss
from rtrain.models.dlrm import DLRM
from rtrain.objectives.pointwise import Pointwise
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Handoff, Metric, Run
from rtrain.schema import Dense, Id, Label, Schema
from tests.unit.training.jobs import train

SCHEMA = Schema(
    features=(Dense(name="x"), Id(name="user", entity="user", rows=20), Id(name="item", entity="item", rows=10)),
    label=Label(name="stars", kind="number"),
    group="user",
    time="at",
    weight="w",
)


def run_of(source: str, storage: str, *, metrics: tuple[Metric, ...] = (RMSE(), MAE())) -> Run:
    return Run(
        name="stars",
        model=DLRM(dim=4, bottom=(8,), top=(16,)),
        data=Interactions(source=source, schema=SCHEMA),
        optim=AdamW(lr=2e-2),
        sparse_optim=RowWiseAdagrad(lr=0.05),
        parallel=Parallel(dense="ddp"),
        global_batch=64,
        duration=Duration(epochs=12),
        evaluation=Evaluation(monitor=metrics[0].name),
        handoff=Handoff(rows=10_000),
        metrics=metrics,
        storage=storage,
    )


def test_from_rows_to_answers(tmp_path: Path) -> None:
    draw, rows = np.random.default_rng(0), 4000
    user, item, x = draw.integers(0, 20, rows), draw.integers(0, 10, rows), draw.normal(size=rows)
    weight = draw.integers(0, 2, rows)
    # Of rows that weigh nothing the label is nonsense: who learns from them is off by 50.
    stars = np.where(weight, 3 + 0.1 * item + 0.5 * x, 100.0)
    made = {"user": user, "item": item, "x": x, "at": np.arange(rows), "stars": stars, "w": weight}
    pq.write_table(pa.table(made), tmp_path / "rows.parquet")
    run = run_of(str(tmp_path / "rows.parquet"), str(tmp_path / "runs"))
    result = train(run)

    said = json.loads((Path(run.folder) / "predictions.json").read_text())["predictions"]
    data = run.data.open()
    test = data.raw("test", 0, data.rows("test"))
    error = np.array(said) - test["stars"].to_numpy()
    assert result["test"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-9)  # weights are not read
    assert result["test"]["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-9)
    counted = test["w"].to_numpy() == 1
    assert np.abs(error[counted]).mean() < 0.3 < 90 < np.abs(error[~counted]).mean()
    known, seen = data.raw("train", 0, data.rows("train")), test["stars"].to_numpy()
    assert result["baseline"]["rmse"] == pytest.approx(
        np.sqrt(((seen - known["stars"].to_numpy().mean()) ** 2).mean()), rel=0.1
    )
    assert (Path(run.folder) / "report.html").exists()

    answers = Predictor(result["export"]).predict(test.select(["x", "user", "item"]).to_pylist())
    assert np.abs(np.array(answers) - said).max() < 1e-5  # float32 products of about 3 in batches of another size


def test_an_objective_that_does_not_read_weights_is_refused() -> None:
    class Own(DLRM):
        def objective(self, schema: Schema) -> Pointwise:
            return Pointwise()

    with pytest.raises(ConfigError, match="^model Own: its objective does not read the weights of rows"):
        Own().blueprint(SCHEMA)


def test_metrics_of_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        run_of("none", "none", metrics=(AUC(), LogLoss()))
    said = "metrics: auc, log_loss cannot measure DLRM. It takes RMSE, MSE and MAE where the label is a number"
    assert str(caught.value) == said
