"""A whole job in one process: resume, early stop, what stops it, and what its folder holds."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import rtrain
from recipes.mmoe_movielens import run as mmoe_run
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.data.interactions import Dataset
from rtrain.duration import Duration
from rtrain.errors import ConfigError, RunFailed
from rtrain.evaluation.rows import TEST_ROWS, TestRows
from rtrain.launch.launchers import Inline, Start
from rtrain.mesh import lay_out
from rtrain.metrics import AUC, GAUC, MAE, Calibration, LogLoss
from rtrain.metrics.state import Scored
from rtrain.report.compare import compare
from rtrain.run import Run
from rtrain.training.agreement import open_data, refuse_shares
from rtrain.training.events import State
from rtrain.training.loop import judge
from tests.unit.training.jobs import job, lines, train


def test_resume_in_the_middle_of_an_epoch_is_bit_identical(tiny: Run) -> None:
    straight = rtrain.override(tiny, {"name": "straight"})
    whole = train(straight)
    train(rtrain.override(tiny, {"duration.steps": 13}))
    assert lines(tiny, "train")[-1]["step"] == 13
    halves = train(tiny)
    assert halves["attempts"] == 2
    assert [x["step"] for x in lines(tiny, "train")] == list(range(1, 31))
    assert [x["loss"] for x in lines(tiny, "train")] == [x["loss"] for x in lines(straight, "train")]
    assert [x["auc"] for x in lines(tiny, "valid") if x["step"] % 5 == 0] == [
        x["auc"] for x in lines(straight, "valid")
    ]
    assert halves["test"] == whole["test"]


def test_rows_that_a_checkpoint_has_seen_are_not_looked_through_again(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the order of time nor what fits the window is read for it once more, unless more is asked of the rows."""
    looked: list[int] = []
    real = Dataset.refuse_rows
    monkeypatch.setattr(Dataset, "refuse_rows", lambda self: (looked.append(1), real(self))[1])
    for steps, changes, times in (
        (3, {"data.leakage": "allow"}, 1),
        (5, {"data.leakage": "allow"}, 1),
        (6, {"data.leakage": "refuse"}, 2),
        (7, {"data.leakage": "refuse"}, 2),
    ):
        train(rtrain.override(tiny, {"duration.steps": steps} | changes))
        assert len(looked) == times
    train(rtrain.override(tiny, {"duration.steps": 3}), fresh=True)
    assert len(looked) == 3


def test_a_result_tells_of_every_baseline(tiny: Run) -> None:
    result = train(rtrain.override(tiny, {"duration.steps": 20}))
    means, of_item, boosting, chance = result["baselines"]
    assert (means["name"], means["test"]) == (result["baseline_name"], result["baseline"])
    assert set(boosting["test"]) == set(of_item["valid"]) == set(result["test"]) and set(chance["test"]) == {"ndcg@10"}
    for baseline in (means, of_item, boosting):
        for name, between in baseline["intervals"].items():
            assert between["low"] < result["test"][name] - baseline["test"][name] < between["high"]
    page = Path(result["report"]).read_text()
    assert all(of["name"] in page for of in result["baselines"]) and "95 % [" in page
    without = train(rtrain.override(tiny, {"name": "without", "duration.steps": 3, "evaluation.boosting_rows": 0}))
    assert [of["name"] for of in without["baselines"]] == [of["name"] for of in (means, of_item, chance)]


def test_another_seed_is_another_run_and_the_callers_generators_go_on(tiny: Run) -> None:
    short = rtrain.override(tiny, {"duration.steps": 3})
    before = random.getstate(), torch.get_rng_state().tolist(), repr(np.random.get_state())
    train(short)
    assert (random.getstate(), torch.get_rng_state().tolist(), repr(np.random.get_state())) == before
    other = rtrain.override(short, {"name": "other", "seed": 1})
    train(other)
    assert [x["loss"] for x in lines(short, "train")] != [x["loss"] for x in lines(other, "train")]


def test_the_best_checkpoint_stays_and_is_the_one_that_is_tested(tiny: Run) -> None:
    result = train(rtrain.override(tiny, {"checkpoint.keep": 1, "evaluation.patience": 2, "duration.epochs": 6}))
    scored = {x["step"]: x["auc"] for x in lines(tiny, "valid")}
    assert result["best_step"] == max(scored, key=lambda s: (scored[s], -s))
    assert result["valid"]["auc"] == max(scored.values())
    assert result["best_step"] in CheckpointFolders(tiny.folder).committed()
    assert result["checkpoint"].endswith(f"step-{result['best_step']:08d}")
    if result["steps"] < 60:
        assert result["stop"] == "no better auc in 2 evaluations"
        assert result["steps"] == result["best_step"] + 10


def test_every_second_is_accounted_for_and_the_test_scores_are_drawn(tiny: Run) -> None:
    result = train(rtrain.override(tiny, {"duration.steps": 20, "evaluation.every.steps": 5}))
    timeline, breakdown = result["timeline"], result["breakdown"]
    assert list(timeline) == ["start-up", "workers", "build", "loop", "test", "baseline", "export"]
    assert sum(timeline.values()) == pytest.approx(result["seconds"], abs=0.1)  # which has one digit
    assert sum(breakdown.values()) == pytest.approx(timeline["loop"], rel=1e-6)
    assert min(timeline.values()) >= 0 and min(breakdown[k] for k in ("evaluation", "records", "sampling")) > 0
    curves = json.loads((Path(tiny.folder) / "curves.json").read_text())[""]
    false, true = curves["roc"]["false"], curves["roc"]["true"]
    area = sum((b - a) * (u + v) / 2 for a, b, u, v in zip(false, false[1:], true, true[1:], strict=False))
    assert area == pytest.approx(result["test"]["auc"], abs=0.01)
    told = json.loads((Path(tiny.folder) / "surroundings.json").read_text())
    assert told["data"] == open_data(tiny).fingerprint
    assert set(told["versions"]) >= {"rtrain", "python", "torch"} and len(told["nodes"]) == 1


def test_a_finished_run_gives_its_stored_result(tiny: Run) -> None:
    short = rtrain.override(tiny, {"duration.steps": 3})
    first = train(short)
    assert train(short) == first
    assert len(lines(short, "start")) == 1
    fresh = train(short, fresh=True)
    assert fresh["test"] == first["test"]
    assert (Path(short.storage) / "tiny~1" / "result.json").exists(), "the earlier run was not kept"


def test_a_start_that_only_judges_keeps_what_training_said(tiny: Run) -> None:
    short = rtrain.override(tiny, {"duration.steps": 6})
    first = train(short)
    assert train(rtrain.override(short, {"evaluation.patience": 9})) == first, "no step is left for more patience"
    judged = train(rtrain.override(short, {"metrics": (AUC(), MAE())}))
    assert judged["valid"].keys() == judged["test"].keys() == {"auc", "mae"}
    assert judged["valid"]["auc"] == first["valid"]["auc"]
    assert (judged["examples_per_s"], judged["breakdown"]) == (first["examples_per_s"], first["breakdown"])
    assert judged["examples_per_s"] > 0


def test_a_finished_run_is_not_overwritten(tiny: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """What leaves nothing to do gives its result; what does goes on, and the first result stays beside the new."""
    short = rtrain.override(tiny, {"duration.steps": 6})
    first = train(short)
    nothing = {"cluster.workers": 4, "parallel.zero_stage": 2, "checkpoint.every.steps": 50, "duration.steps": 4} | {
        "handoff.port": 8123
    }
    assert train(rtrain.override(short, nothing), quiet=False) == first
    said = capsys.readouterr().err
    assert "finished already, at step 6" in said and "duration.steps: 6 -> 4" in said
    folder = Path(short.folder)
    assert json.loads((folder / "result.json").read_text()) == first

    longer = train(rtrain.override(short, {"duration.steps": 9}), quiet=False)
    assert longer["steps"] == 9
    said = capsys.readouterr().err
    assert "duration.steps: 6 -> 9" in said and "resumes from step 6" in said and "stays as result~1.json" in said
    assert json.loads((folder / "result~1.json").read_text()) == first
    assert (folder / "report~1.html").exists()
    assert train(rtrain.override(short, {"duration.steps": 9, "metrics": (rtrain.AUC(),)}))["test"].keys() == {"auc"}
    assert json.loads((folder / "result~2.json").read_text()) == longer


def test_a_run_that_stopped_early_says_what_more_epochs_need(tiny: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = rtrain.override(tiny, {"evaluation.every.steps": 1, "evaluation.patience": 1})
    first = train(stopped)
    assert first["stop"]
    assert train(rtrain.override(stopped, {"duration.epochs": 9}), quiet=False) == first
    assert "evaluation.patience gives it more" in capsys.readouterr().err


def test_a_clock_ends_a_run_with_a_score_and_a_checkpoint_and_more_time_goes_on(tiny: Run) -> None:
    """At the next point of the curve, which comes each step here."""
    timed = replace(tiny, duration=Duration(epochs=1, seconds=1e-6))
    first = train(timed)
    assert first["steps"] == 1 and first["stop"] == "duration.seconds: 1e-06 s are over"
    assert CheckpointFolders(tiny.folder).committed() == [1] and [x["step"] for x in lines(tiny, "valid")] == [1]
    assert train(timed) == first
    calm = train(replace(tiny, name="calm", duration=Duration(epochs=1)))
    longer = train(replace(tiny, duration=Duration(epochs=1, seconds=1e6)))
    assert longer["steps"] == calm["steps"] == 10 and not longer["stop"]
    losses = [[x["loss"] for x in lines(replace(tiny, name=name), "train")] for name in ("tiny", "calm")]
    assert losses[0] == losses[1]


def test_a_clock_has_the_validation_split_scored(tiny: Run) -> None:
    timed = replace(tiny, duration=Duration(epochs=1), log_every_steps=4)
    job(replace(timed, evaluation=replace(tiny.evaluation, every=Duration(seconds=1e-6))))
    assert [x["step"] for x in lines(tiny, "valid")] == [4, 8, 10]


def test_another_run_of_a_name_is_refused_with_a_free_one(tiny: Run) -> None:
    first = train(rtrain.override(tiny, {"duration.steps": 3}))
    (Path(tiny.storage) / "tiny-2").mkdir()
    with pytest.raises(ConfigError, match=r"optim.lr: .* -> 0.5\. .*--name tiny-3\), .*--fresh"):
        train(rtrain.override(tiny, {"optim.lr": 0.5}))
    assert train(rtrain.override(tiny, {"duration.steps": 3})) == first


def test_what_cannot_be_continued_is_refused(tiny: Run) -> None:
    train(rtrain.override(tiny, {"duration.steps": 3}))
    with pytest.raises(ConfigError, match=r"exists with another config: model.dim: 16 -> 8\. Train this one"):
        train(rtrain.override(tiny, {"model.dim": 8}))
    longer = rtrain.override(tiny, {"duration.steps": 4, "cluster.workers": 3, "checkpoint.keep": 9})
    assert train(longer)["steps"] == 4, "a longer run on other workers is the same run"


class _Late(Inline):
    """Does something once the driver has looked at the data, before a rank does."""

    def __init__(self, do: Callable[[], None]):
        self.do = do

    def run(self, start: Start) -> Any:
        self.do()
        return super().run(start)


def test_data_that_changed_is_refused_by_the_driver_and_by_the_ranks(
    tiny: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(short := rtrain.override(tiny, {"duration.steps": 3}))
    assert train(short, quiet=False) == first and "other data" not in capsys.readouterr().err
    path = Path(tiny.data.source)
    table = pq.read_table(path)

    def cut() -> None:
        pq.write_table(table.slice(0, table.num_rows - 50), path, row_group_size=700)

    before = path.read_bytes()
    cut()
    assert train(short, quiet=False) == first
    assert "its result is of other data: run 'tiny': the data changed since step 3" in capsys.readouterr().err
    path.write_bytes(before)
    longer = rtrain.override(tiny, {"duration.steps": 4})
    with pytest.raises(ConfigError, match="rank 0 on .*the data changed since step 3"):
        train(longer, launcher=_Late(cut))
    with pytest.raises(ConfigError, match="^run 'tiny': the data changed since step 3"):
        train(longer)


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Run) -> None:
    wild = rtrain.override(tiny, {"optim.lr": 1e20, "sparse_optim.lr": 1e20})
    with pytest.raises(RunFailed, match=r"rank 0 on \S+, step \d+: the loss is (nan|inf) at step \d+\. Lower optim.lr"):
        train(wild)
    assert "failed at step" in lines(wild, "event")[-1]["text"]


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tiny: Run) -> None:
    train(rtrain.override(tiny, {"duration.steps": 14}))
    newest = CheckpointFolders(tiny.folder).of(14)
    shard = next(Path(newest.path).glob("rank-00000*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    straight = rtrain.override(tiny, {"name": "straight", "duration.steps": 20})
    train(straight)
    before = max(s for s in CheckpointFolders(tiny.folder).committed() if s < 14)
    assert train(rtrain.override(tiny, {"duration.steps": 20}))["steps"] == 20
    assert f"Resuming from step {before}" in lines(tiny, "event")[0]["text"]
    assert [x["loss"] for x in lines(tiny, "train")] == [x["loss"] for x in lines(straight, "train")]


def test_the_folder_holds_what_the_report_and_a_server_need(tiny: Run) -> None:
    train(rtrain.override(tiny, {"duration.steps": 5, "handoff.rows": 16}))
    folder = Path(tiny.folder)
    said = json.loads((folder / "predictions.json").read_text())
    assert len(said["rows"]) == len(said["predictions"]) == 16
    from rtrain.export.artifact import Predictor

    predictor = Predictor(f"{folder}/export")
    rows = tiny.data.open().raw("test", 0, 16).select([f.name for f in tiny.data.schema.features]).to_pylist()
    # The same weights on rows in another batch: float32 in another order of sums.
    assert predictor.predict(rows) == pytest.approx(said["predictions"], abs=1e-5)
    assert len(set(said["predictions"])) > 8
    placement = json.loads((folder / "placement.json").read_text())
    assert {t["table"] for t in placement["tables"]} == set(tiny.data.schema.tables)
    assert (folder / "report.html").exists()


def test_a_further_labels_metric_decides() -> None:
    run = rtrain.override(mmoe_run(), {"evaluation.monitor": "like_log_loss", "evaluation.patience": 1})
    assert run.monitored == LogLoss()
    state = State(total_steps=9, rows=1)
    assert judge(run, state, {"log_loss": 0.5, "like_log_loss": 0.7})
    assert judge(run, state, {"log_loss": 0.9, "like_log_loss": 0.6})
    assert not judge(run, state, {"log_loss": 0.1, "like_log_loss": 0.6})
    assert state.stop == "no better like_log_loss in 1 evaluations"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"evaluation.monitor": "click_auc"},
            "evaluation.monitor: 'click_auc' is not among the metrics: auc, log_loss, like_auc, like_log_loss; "
            "did you mean 'like_auc'?",
        ),
        (
            {"metrics": (AUC(), Calibration()), "evaluation.monitor": "like_calibration"},
            "evaluation.monitor: like_calibration is best somewhere in between, not at an end. "
            "Monitor log_loss instead",
        ),
        ({"metrics": (AUC(), AUC())}, "metrics: two of them would be called 'auc'. Drop one, or rename its label"),
    ],
)
def test_a_monitor_that_names_no_metric_of_any_label(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rtrain.override(rtrain.override(mmoe_run(), {"metrics": (AUC(), LogLoss())}), changes)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("changes", "workers", "said"),
    [
        (
            {"data.split.test": 0.0004},
            2,
            "data.split: the test split has 1 rows, but each of the 2 data ranks needs one. "
            "Change data.split.valid and data.split.test, bring more data, or use fewer workers",
        ),
        (
            {"evaluation.batch": 3},
            4,
            "evaluation.batch: 3 cuts the valid split's 302 rows into batches of 2, but each of the 4 data ranks needs "
            "a row of every batch. Raise evaluation.batch, or use fewer workers",
        ),
        (
            {"global_batch": 4},
            4,
            "global_batch: 4 cuts the train split's 2398 rows into batches of 3, but each of the 4 data ranks needs "
            "a row of every batch. Raise global_batch, or use fewer workers",
        ),
    ],
)
def test_a_split_that_not_every_rank_gets_a_row_of_is_refused_before_training(
    tiny: Run, changes: dict[str, Any], workers: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rtrain.override(tiny, {**changes, "handoff.serve_check": False})
    data = open_data(run)
    refuse_shares(run, data, lay_out(run.parallel, 1))
    with pytest.raises(ConfigError) as caught:
        refuse_shares(run, data, lay_out(run.parallel, workers))
    assert str(caught.value) == said
    # And so says the launch, before a worker starts: as torchrun's first rank, which opens the data, it would wait.
    monkeypatch.setenv("WORLD_SIZE", str(workers))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError) as caught:
        rtrain.train(run, launcher="torchrun", quiet=True)
    assert str(caught.value) == said


def test_judge_takes_the_way_that_is_up(tiny: Run) -> None:
    run = rtrain.override(tiny, {"evaluation.monitor": "log_loss", "evaluation.patience": 2})
    state = State(total_steps=9, rows=1)
    assert judge(run, state, {"auc": 0.1, "log_loss": 0.7})
    assert not judge(run, state, {"auc": 0.9, "log_loss": 0.8})
    assert judge(run, state, {"auc": 0.1, "log_loss": 0.6})
    assert not judge(run, state, {"auc": 0.1, "log_loss": float("nan")})
    assert not judge(run, state, {"auc": 0.1, "log_loss": 0.6})
    assert state.stop == "no better log_loss in 2 evaluations"


def test_slices_are_of_the_test_split_alone_and_on_the_page(tiny: Run) -> None:
    changes = {"evaluation.slices": ("gender",), "metrics": (AUC(), GAUC(by=("user_id", "timestamp")))}
    run = rtrain.override(tiny, {"duration.steps": 6} | changes)
    result = train(run)
    assert list(result["test"])[:4] == [
        "auc",
        "gauc[user_id,timestamp]",
        "auc[gender=M]",
        "gauc[user_id,timestamp][gender=M]",
    ]
    assert "auc[gender=F]" in result["test"] and result["baseline"].keys() == result["test"].keys()
    assert set(result["valid"]) == set(lines(run, "valid")[-1]) - {"kind", "step"} == {"auc", "gauc[user_id,timestamp]"}
    page = Path(result["report"]).read_text()
    assert "AUC[gender=F]" in page and "GAUC[user_id,timestamp]" in page
    again = train(rtrain.override(run, {"metrics": (AUC(),), "evaluation.slices": ("hour",)}))
    assert len(again["test"]) > 2 and all(name.startswith("auc[hour=") for name in list(again["test"])[1:])
    assert not any("gender" in name for name in again["test"])


def test_two_runs_are_compared_row_by_row(tiny: Run) -> None:
    """From the rows that each kept of its test split; their metrics are those that the run said."""
    short = rtrain.override(tiny, {"duration.steps": 6})
    first, second = (train(rtrain.override(short, {"name": f"r{seed}", "seed": seed})) for seed in (0, 1))
    folders = [str(Path(short.storage) / name) for name in ("r0", "r1")]
    for folder, result in zip(folders, (first, second), strict=True):
        rows = TestRows.read((Path(folder) / TEST_ROWS).read_bytes())[""]
        assert rows.grouped and rows.share == 1 and isinstance(rows.scored, Scored)
        for metric in short.metrics:
            assert metric.value(metric.partial(rows.scored)) == pytest.approx(result["test"][metric.name], abs=1e-12)
    found = compare(folders)
    assert found["notes"] == []
    for row in found["metrics"]:
        between = row["intervals"][1]
        assert between["low"] <= row["differences"][1] <= between["high"]

    train(rtrain.override(short, {"name": "r2", "data.split": rtrain.ByTime(valid=0.1, test=0.2)}))
    found = compare([folders[0], str(Path(short.storage) / "r2")])
    assert all(row["intervals"] == [None, None] for row in found["metrics"])
    assert "r0 and r2 were not scored on the same rows" in found["notes"][-1]
