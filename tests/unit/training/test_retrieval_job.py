"""Whole jobs of retrieval models in this process: what is found, a resume, and what is refused before the start."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

import rtrain
from recipes import (
    bpr_movielens,
    lightgcn_movielens,
    sasrec_movielens,
    text_tower_movielens,
    two_tower_features_movielens,
    two_tower_movielens,
)
from rtrain.errors import ConfigError
from rtrain.evaluation.rows import TEST_ROWS, TestRows
from rtrain.metrics.state import Retrieved
from rtrain.report.compare import compare
from rtrain.run import Run
from tests.unit.training.jobs import At, job, lines, losses, train

SHORT: dict[str, Any] = {
    "parallel.dense": "ddp", "tracking.to": (), "checkpoint.every.steps": 10, "checkpoint.background": False,
    "log_every_steps": 1,
}  # fmt: skip
SASREC: dict[str, Any] = {"model.dim": 16, "model.layers": 1, "data.length": 20, "data.negatives.count": 5}
RUNS = {
    "bpr": rtrain.override(bpr_movielens.debug(), SHORT | {"duration.steps": 60, "evaluation.every.steps": 20}),
    "light gcn": rtrain.override(
        lightgcn_movielens.debug(), SHORT | {"model.dim": 16, "duration.steps": 60, "evaluation.every.steps": 20}
    ),
    "two towers": rtrain.override(two_tower_movielens.debug(), SHORT),
    "features": rtrain.override(
        two_tower_features_movielens.debug(), SHORT | {"duration.steps": 40, "evaluation.every.steps": 20}
    ),
    "text": rtrain.override(
        text_tower_movielens.debug(),
        SHORT | {"model.dim": 16, "duration.steps": 40, "evaluation.every.steps": 20},
    ),
    "sasrec": rtrain.override(
        sasrec_movielens.debug(), SHORT | SASREC | {"duration.steps": 40, "evaluation.every.steps": 20}
    ),
}


TRAINED = ("bpr", "light gcn", "features", "text", "sasrec")


@pytest.mark.parametrize("name", TRAINED)
def test_a_job_finds_more_the_longer_it_trains(name: str, tmp_path: Path) -> None:
    run = rtrain.override(RUNS[name], {"storage": str(tmp_path)})
    result = train(run)
    assert result["steps"] == run.duration.steps
    assert rtrain.Encoders(result["export"]).vectors.shape[1] == run.model.dim  # type: ignore[attr-defined]
    curve = [line["ndcg@10"] for line in lines(run, "valid")]
    assert curve[-1] > curve[0] > 0
    assert set(result["test"]) == {metric.name for metric in run.metrics}
    assert 0 < result["test"]["ndcg@10"] < 1
    assert 0 < result["baseline"]["ndcg@10"] < 1 and result["baseline_name"] == "the most popular items"
    assert "NDCG@10" in Path(result["report"]).read_text()
    (popular,) = result["baselines"]
    between, gap = popular["intervals"]["ndcg@10"], result["test"]["ndcg@10"] - popular["test"]["ndcg@10"]
    assert popular["test"] == result["baseline"] and between["low"] < gap < between["high"]


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_job_draws_the_same_negatives_and_ends_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    calm = rtrain.override(RUNS[name], {"storage": str(tmp_path / "calm")})
    stopped = rtrain.override(RUNS[name], {"storage": str(tmp_path / "stopped")})
    outcome = job(calm)
    with pytest.raises(Exception, match="RuntimeError"):
        job(stopped, At(25))
    again = job(stopped)
    assert again.attempts == 2
    assert losses(stopped) == losses(calm)
    assert again.test == outcome.test


class NotExported(rtrain.MF):
    exported: ClassVar[str] = ""


IN_BATCH = rtrain.InBatchSoftmax()
REFUSED = {
    "handoff.export: NotExported is not exported yet. Set handoff.export to false": ("bpr", {"model": NotExported()}),
    "handoff.serve_check: answers of MF are not compared yet. Set it": ("bpr", {"handoff.serve_check": True}),
    "metrics: auc cannot measure MF. It takes metrics of the first places": (
        "bpr",
        {"metrics": (rtrain.MRR(k=10), rtrain.AUC())},
    ),
    "data: MF is trained on Pairs. Give the data as rtrain.Pairs": ("bpr", {"data": RUNS["sasrec"].data}),
    "data: MF is trained on Pairs": ("bpr", {"data": RUNS["light gcn"].data}),
    "parallel.microbatches: 2, but LightGCN spreads all vectors for the whole batch": (
        "light gcn",
        {"parallel.microbatches": 2},
    ),
    "parallel.tensor: 2, but LightGCN has no tensor-parallel plan": ("light gcn", {"parallel.tensor": 2}),
    "data.item_features: MF reads ids alone. Leave them out, or use TwoTower": (
        "bpr",
        {"data.item_features": RUNS["features"].data.item_features},  # type: ignore[attr-defined]
    ),
    "data.item_features: TextTower reads a text of items, and there is none. Give Words or Text, or use TwoTower": (
        "text",
        {"data.item_features": RUNS["features"].data.item_features},  # type: ignore[attr-defined]
    ),
    "model.heads: 3 does not divide model.dim, 64": ("text", {"model.dim": 64, "model.heads": 3}),
    "model.layers: must be at least 1, got 0": ("text", {"model.layers": 0}),
    "data: SASRec is trained on Histories": ("sasrec", {"data": RUNS["bpr"].data}),
    "data: SASRec is trained on Pairs or Histories, got Tokens": ("sasrec", {"data": rtrain.Tokens(source="stdlib")}),
    "parallel.tensor: 2, but MF has no tensor-parallel plan": ("bpr", {"parallel.tensor": 2}),
    "parallel.tensor: 3 does not divide model.heads, 2": ("sasrec", {"parallel.tensor": 3, "cluster.workers": 3}),
    "parallel.pipeline: 4 ranks with schedule '1f1b' make 4 stages, but SASRec has 3 pieces": (
        "sasrec",
        {"parallel.pipeline": 4, "parallel.microbatches": 4, "cluster.workers": 4},
    ),
    "model.heads: 3 does not divide model.dim, 16": ("sasrec", {"model.heads": 3}),
    "model.objective.temperature: must be above 0": ("bpr", {"model.objective.temperature": 0.0}),
    "data.negatives.power: must be at least 0, got -1.0": ("bpr", {"data.negatives.power": -1.0}),
    "data.negatives.count: 0, but BPR compares with drawn negatives": ("bpr", {"data.negatives.count": 0}),
    "data.negatives.count: 1, but InBatchSoftmax takes the batch's own": ("bpr", {"model.objective": IN_BATCH}),
    "parallel.microbatches: 2, but InBatchSoftmax compares within the whole batch": (
        "two towers",
        {"parallel.microbatches": 2},
    ),
    "model.dropout": ("sasrec", {"model.dropout": 1.0}),
}


@pytest.mark.parametrize(("message", "case"), REFUSED.items())
def test_what_does_not_go_together_is_one_line(message: str, case: tuple[str, dict[str, Any]]) -> None:
    name, changes = case
    with pytest.raises(ConfigError) as error:
        run: Run = rtrain.override(
            RUNS[name], changes | ({"evaluation.monitor": "auc"} if "metrics" in changes else {})
        )
        rtrain.plan(run)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_two_retrieval_runs_are_compared_user_by_user(tmp_path: Path) -> None:
    folders = []
    for name, seed in (("bpr", 0), ("bpr", 1)):
        run = rtrain.override(RUNS[name], {"storage": str(tmp_path), "name": f"{name}-{seed}", "seed": seed})
        result = train(run)
        folders.append(run.folder)
        rows = TestRows.read((Path(run.folder) / TEST_ROWS).read_bytes())[""]
        assert isinstance(rows.scored, Retrieved)
        for metric in run.metrics:
            assert metric.value(metric.partial(rows.scored)) == pytest.approx(result["test"][metric.name], abs=1e-12)
    found = compare(folders)
    assert found["notes"] == []
    for row in found["metrics"]:
        between = row["intervals"][1]
        assert between["low"] <= row["differences"][1] <= between["high"]


def test_the_most_popular_items_are_narrower_than_what_a_model_finds(tmp_path: Path) -> None:
    beyond = (rtrain.Coverage, rtrain.Diversity, rtrain.Novelty, rtrain.PopularityBias, rtrain.Serendipity)
    metrics = (rtrain.NDCG(k=10), *(metric(k=10) for metric in beyond))
    changes = {"storage": str(tmp_path), "duration.steps": 20, "metrics": metrics, "evaluation.monitor": "ndcg@10"}
    result = train(rtrain.override(RUNS["bpr"], changes))
    test, baseline = result["test"], result["baseline"]
    assert 0 < baseline["coverage@10"] < test["coverage@10"] <= 1
    assert baseline["novelty@10"] < test["novelty@10"]
    assert 0 < test["diversity@10"] < 1 and 0 < baseline["diversity@10"] < 1
    assert baseline["serendipity@10"] == 0 < test["serendipity@10"] < 1
    assert 1 < baseline["popularity_bias@10"] > test["popularity_bias@10"] > 0
