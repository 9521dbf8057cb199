"""Searches on a real Ray and its Tune: over a curve that is known, and over runs on two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rtrain
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import ConfigError, RunFailed
from rtrain.launch.manifest import read_starts
from rtrain.storage import Folder
from rtrain.training import history
from rtrain.tuning import engine
from rtrain.tuning.journal import Journal
from tests.cluster.conftest import environment, wait_for
from tests.cluster.surrogates import ALWAYS_FAILS, EVERY, TOTAL, surrogate, value

SPACE = {"optim.lr": rtrain.loguniform(1e-4, 1e-1), "sparse_optim.lr": rtrain.choice(0.01, 0.05)}


def searched(run: Any, search: Any, space: Any = None, **more: Any) -> Any:
    """A search whose trials are a known curve's."""
    real = engine.searched
    try:
        engine.searched = lambda conductor, scheduler: real(conductor, scheduler, surrogate)
        return rtrain.tune(run, space or SPACE, search=search, **more)
    finally:
        engine.searched = real


@pytest.fixture
def run(small_run: Any) -> Any:
    return rtrain.override(
        small_run, {"duration.steps": TOTAL, "evaluation.every": rtrain.Duration(steps=EVERY), "cluster.workers": 1}
    )


def steps_of(run: Any) -> Counter[tuple[str, str]]:
    """How often each interval of each run was trained."""
    found = Counter[tuple[str, str]]()
    for log in Path(run.folder).glob("trials/*/steps.log"):
        found.update((log.parent.name, line.split()[0]) for line in log.read_text().splitlines())
    return found


def test_halving_several_at_a_time_and_a_failure_that_is_tried_again(
    run: Any, joined_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    tuned = searched(run, rtrain.Search(trials=8, sampler="random", scheduler=rtrain.Asha(), concurrent=2))
    said = capfd.readouterr().err
    assert "; it is tried once more, from its last checkpoint" in said and "Traceback" not in said
    assert [t.error for t in tuned.trials] == [""] * 8
    assert {t.ended for t in tuned.trials} == {"finished", "stopped"}
    best = tuned.trials[0]
    assert best.metrics["auc"] == pytest.approx(value(best.changes["optim.lr"], TOTAL))
    assert all(t.steps == TOTAL for t in tuned.trials if t.ended == "finished")
    assert all(t.steps < TOTAL for t in tuned.trials if t.ended == "stopped")
    assert best.metrics["parameters"] > 10_000
    assert set(steps_of(run).values()) == {1}  # nothing was trained twice, nor by who was tried again
    assert list(Path(run.folder).glob("trials/*/failed"))
    assert "<svg" in (Path(run.folder) / "report.html").read_text()
    # The same call again has nothing to run.
    before = (Path(run.folder) / "spent.json").read_text()
    assert searched(run, rtrain.Search(trials=8, sampler="random", scheduler=rtrain.Asha())).trials == tuned.trials
    assert (Path(run.folder) / "spent.json").read_text() == before


@pytest.mark.slow
def test_a_population_learns_from_its_best(run: Any, joined_ray: None) -> None:
    asked = rtrain.Search(trials=4, sampler="random", scheduler=rtrain.Population(every=20), concurrent=4)
    tuned = searched(run, asked)
    assert [t.ended for t in tuned.trials] == ["finished"] * 4
    entries = Journal(rtrain.override(run, {})).entries
    taken = [entry for entry in entries.values() if entry.source]
    assert taken
    for entry in taken:
        at = entry.source.rpartition("@")[2]
        copied = (Path(run.folder) / "trials" / entry.run / "steps.log").read_text()
        assert copied.count("copied") == int(at) // EVERY
        assert 1e-4 <= entry.drawn["optim.lr"] <= 1e-1
    own = {key: count for key, count in steps_of(run).items() if count > 1}
    assert not own


@pytest.mark.slow
def test_a_real_run_that_is_stopped_takes_no_further_step(small_run: Any, joined_ray: None) -> None:
    run = rtrain.override(small_run, {"duration.steps": 20, "evaluation.every.steps": 5, "cluster.workers": 1})
    search = rtrain.Search(trials=2, sampler="grid", scheduler=rtrain.Asha(grace=5, factor=2), concurrent=1)
    tuned = rtrain.tune(run, {"optim.lr": rtrain.choice(1e-2, 1e-9)}, search=search)
    assert [(t.name, t.ended, t.steps, t.error) for t in tuned.trials] == [
        ("trial-0000", "finished", 20, ""),
        ("trial-0001", "stopped", 5, ""),
    ]
    folder = Folder(run.folder).child("trials").child("trial-0001")
    assert max(line["step"] for line in history.read(folder)) == 5
    assert CheckpointFolders(folder.uri).committed() == [5]
    assert folder.read_json("manifest.json")["starts"][-1]["outcome"]["state"] == "stopped"
    # What is over gets no further run: a search with less than it has taken begins none, and keeps what it knows.
    with_less = replace(search, trials=3, hours=1e-6, sampler="grid")
    again = rtrain.tune(run, {"optim.lr": rtrain.choice(1e-2, 1e-9)}, search=with_less)
    assert [t.name for t in again.trials] == ["trial-0000", "trial-0001"]


def test_what_has_nothing_left_to_spend_begins_no_run(run: Any, joined_ray: None) -> None:
    with pytest.raises(RunFailed, match="hours: the next interval would end after those that the search has"):
        searched(run, rtrain.Search(trials=3, sampler="random", concurrent=1, hours=1e-6))
    assert not steps_of(run)


@pytest.mark.slow
def test_the_budget_ends_it_and_more_goes_on(run: Any, joined_ray: None) -> None:
    begun: Counter[tuple[str, str]] = Counter()
    hours = 4 / 3600
    while not begun:  # however long this machine takes to begin the first trial
        with suppress(RunFailed):
            closed = searched(run, rtrain.Search(trials=3, sampler="random", concurrent=1, hours=hours)).closed
            assert closed == "hours: the next interval would end after those that the search has"
        begun, hours = steps_of(run), 2 * hours
    tuned = searched(run, rtrain.Search(trials=3, sampler="random", concurrent=1))
    assert [t.ended for t in tuned.trials] == ["finished"] * 3
    assert set(steps_of(run).values()) == {1}
    assert begun.keys() <= steps_of(run).keys()


@pytest.mark.slow
def test_what_it_may_cost_ends_it_too(run: Any, joined_ray: None) -> None:
    asked = rtrain.Search(trials=3, sampler="random", concurrent=1, price=3600.0, cost=0.001)
    space = {"optim.lr": rtrain.loguniform(1e-4, 1e-2)}  # of which none fails
    closed = searched(run, asked, space).closed  # the first interval is begun: nothing is known of it before
    assert closed == "cost: the next intervals would cost more than the search may"
    assert list(steps_of(run)) == [("trial-0000", "10")]
    assert json.loads((Path(run.folder) / "spent.json").read_text())["worker_seconds"] > 0
    tuned = searched(run, replace(asked, cost=1000.0), space)
    assert [t.ended for t in tuned.trials] == ["finished"] * 3
    assert set(steps_of(run).values()) == {1}


@pytest.mark.slow
def test_two_objectives_and_a_later_search_that_knows_of_the_earlier(
    run: Any, joined_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the Gaussian process, in whose picture no trial beats those of the front in both."""
    asked = rtrain.Search(trials=6, sampler="gp", objectives=("auc", "cost"), price=2.0, concurrent=2)
    tuned = searched(run, asked)
    assert tuned.objectives == {"auc": "max", "cost": "min"}
    assert {t.ended for t in tuned.trials} == {"finished"}
    for one in tuned.front:
        assert not any(
            t.metrics["auc"] >= one.metrics["auc"] and t.metrics["cost"] < one.metrics["cost"] for t in tuned.trials
        )
    assert all(t.metrics["cost"] == pytest.approx(2 * t.metrics["seconds"] / 3600) for t in tuned.trials)
    # `rtrain report` writes the same page from what lies there.
    page = Path(run.folder) / "report.html"
    page.unlink()
    subprocess.run([sys.executable, "-m", "rtrain", "report", run.folder], check=True, timeout=120)
    assert "<svg" in page.read_text()
    # The later one begins with what the earlier one knows, and `fresh` moves it aside.
    later = replace(run, name=f"{run.name}-later")
    capsys.readouterr()
    warm = searched(later, rtrain.Search(trials=2, sampler="gp", concurrent=1), warm=run.folder)
    assert f"6 finished trials of {run.folder} are known to the sampler" in capsys.readouterr().err
    assert len(warm.trials) == 2
    anew = searched(later, rtrain.Search(trials=1, sampler="random", concurrent=1), fresh=True)
    assert len(anew.trials) == 1
    assert (Path(f"{later.folder}~1") / "trials").exists()


@pytest.mark.slow
def test_how_long_the_export_takes_to_answer_is_weighed(small_run: Any, joined_ray: None) -> None:
    run = rtrain.override(small_run, {"duration.steps": 10, "evaluation.every.steps": 10, "cluster.workers": 1})
    space = {"model.top": rtrain.choice((8,), (256, 256))}
    search = rtrain.Search(trials=2, sampler="grid", objectives=("auc", "latency_ms"), concurrent=1)
    tuned = rtrain.tune(run, space, search=search)
    assert [t.error for t in tuned.trials] == ["", ""]
    assert all(t.metrics["latency_ms"] > 0 for t in tuned.trials)
    assert not list(Path(run.folder).glob("trials/*/probed"))
    assert list(Path(run.folder).glob("trials/*/tensorboard/*"))  # trackers of the recipe's hear of trials too


def test_what_cannot_run_is_refused_and_what_fails_for_good_is_told(run: Any, joined_ray: None) -> None:
    space = {"cluster.workers": rtrain.choice(1, 64), "optim.lr": rtrain.choice(0.01, ALWAYS_FAILS)}
    tuned = searched(run, rtrain.Search(trials=3, sampler="grid", concurrent=1), space)
    assert sorted(t.ended for t in tuned.trials) == ["failed", "finished", "refused"]
    failed = next(t for t in tuned.trials if t.ended == "failed")
    assert "the loss is inf" in failed.error
    assert "Traceback" not in failed.error
    refused = next(t for t in tuned.trials if t.ended == "refused")
    assert "it needs 64 CPUs, but the search has 1" in refused.error
    assert not (Path(run.folder) / "trials" / refused.name / "steps.log").exists()


DRIVER = """
import sys
import rtrain
from recipes.dlrm_movielens import run as main_run
from tests.cluster.test_tuning import SPACE, searched

run = rtrain.override(main_run(), {
    "name": "killed", "storage": sys.argv[1], "duration": rtrain.Duration(steps=60), "cluster.workers": 1,
    "evaluation.every": rtrain.Duration(steps=10), "evaluation.patience": None, "handoff.serve_check": False,
})
tuned = searched(run, eval(sys.argv[2]))
print(len(tuned.trials), tuned.closed)
"""
MEDIAN = "rtrain.Search(trials=6, sampler='random', scheduler=rtrain.Median(least=2), concurrent=2)"
POPULATION = "rtrain.Search(trials=4, sampler='random', scheduler=rtrain.Population(every=20), concurrent=4)"


def driven(storage: Path, ray_temp_dir: str, search: str) -> "subprocess.Popen[str]":
    """A process that searches."""
    command = [sys.executable, "-c", DRIVER, str(storage), search]
    return subprocess.Popen(
        command, env=environment(ray_temp_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_with_nothing_run_twice(tmp_path: Path, ray_temp_dir: str) -> None:
    trials = tmp_path / "killed" / "trials"
    for intervals in (1, 9):  # of all trials together, after which the driver is killed
        under_way = driven(tmp_path, ray_temp_dir, MEDIAN)
        wait_for(lambda n=intervals: _intervals(trials) >= n, "an interval of a trial", timeout_s=240)
        os.kill(under_way.pid, signal.SIGKILL)
        under_way.communicate(timeout=60)
        time.sleep(1)  # so long an old trial may go on
    last = driven(tmp_path, ray_temp_dir, MEDIAN)
    out, err = last.communicate(timeout=400)
    assert last.returncode == 0, err[-3000:]
    assert out.split() == ["6"]
    whole = Counter(line.split()[0] for log in trials.glob("*/steps.log") for line in log.read_text().splitlines())
    per_trial = [[line.split()[0] for line in log.read_text().splitlines()] for log in trials.glob("*/steps.log")]
    assert len(per_trial) == 6
    assert all(len(set(steps)) == len(steps) for steps in per_trial)
    assert whole["10"] == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_population_that_was_ended_goes_on_as_one(tmp_path: Path, ray_temp_dir: str, how: signal.Signals) -> None:
    trials = tmp_path / "killed" / "trials"
    first = driven(tmp_path, ray_temp_dir, POPULATION)
    wait_for(lambda: bool(list(trials.glob("*-g1/steps.log"))), "a member that took another's place", timeout_s=240)
    os.kill(first.pid, how)
    said, _ = first.communicate(timeout=120)
    if how == signal.SIGINT:
        assert (first.returncode, said) == (0, "4 it was interrupted\n")
    time.sleep(1)
    last = driven(tmp_path, ray_temp_dir, POPULATION)
    out, err = last.communicate(timeout=400)
    assert last.returncode == 0, err[-3000:]
    assert out.split() == ["4"]
    for log in trials.glob("*/steps.log"):
        steps = [line.split()[0] for line in log.read_text().splitlines()]
        assert len(set(steps)) == len(steps), log
    members = Journal(rtrain.override(_killed(tmp_path), {})).entries.values()
    assert [m.ended for m in members] == ["finished"] * 4
    assert {m.step for m in members} == {TOTAL}


def _killed(storage: Path) -> Any:
    from recipes.dlrm_movielens import run as main_run

    return replace(main_run(), name="killed", storage=str(storage))


def _intervals(trials: Path) -> int:
    return sum(len(log.read_text().splitlines()) for log in trials.glob("*/steps.log"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_are_distributed_runs_and_a_population_goes_on_with_equal_loss(small_run: Any, joined_ray: None) -> None:
    """The member that took another one's place begins where that one was: its first loss is of the same weights."""
    run = rtrain.override(small_run, {"duration.steps": 20, "evaluation.every.steps": 10})
    space = {"optim.lr": rtrain.loguniform(1e-4, 1e-2)}
    search = rtrain.Search(trials=2, sampler="random", scheduler=rtrain.Population(every=10, share=0.5), concurrent=1)
    tuned = rtrain.tune(run, space, search=search)
    assert [t.error for t in tuned.trials] == ["", ""]
    assert (Path(tuned.checkpoint) / "COMMITTED").exists()
    taken = next(entry for entry in Journal(run).entries.values() if entry.source)
    name, _, at = taken.source.rpartition("@")
    trials = Folder(run.folder).child("trials")
    assert CheckpointFolders(f"{trials.uri}/{taken.run}").committed()[0] == int(at) == 10
    curves = [history.read(trials.child(folder)) for folder in (name, taken.run)]
    losses = [next(x["loss"] for x in curve if x["kind"] == "train" and x["step"] == 11) for curve in curves]
    best = next(e for e in Journal(run).entries.values() if e.name == tuned.trials[0].name)
    assert tuned.source == best.source and ("The best went on from" in str(tuned)) == bool(best.source)
    assert losses[0] == losses[1]  # before an update: with the same weights, on the same rows
    assert tuned.command.startswith("train --name small-best --optim.lr ")
    told = {name: read_starts(trials.child(name)) for name in trials.names()}
    first, last = told[name][-1], told[taken.run][-1]
    assert first["parent"]["kind"] == "trial" and first["parent"]["search"] == run.folder
    assert last["parent"] | {"number": 0} == {
        "kind": "fork", "search": run.folder, "number": 0, "run": f"{trials.uri}/{name}", "step": 10,
    }  # fmt: skip
    assert (last["outcome"]["state"], last["outcome"]["step"]) == ("finished", 20) and len(last["data"]) == 16
    assert last["code"] == first["code"] and len(last["hardware"]["nodes"]) == 1


def test_a_key_that_is_not_there(small_run: Any) -> None:
    with pytest.raises(ConfigError, match="optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'"):
        rtrain.tune(small_run, {"optim.lrr": rtrain.loguniform(1e-4, 1e-2)}, trials=1)


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"objectives": ("acu",)}, "no trial reports 'acu'. They report auc, log_loss"),
        ({"sampler": "grid"}, "optim.lr: a grid needs values that can be counted"),
        ({"scheduler": rtrain.Asha(grace=10_000)}, "grace: 10000 steps are more than the 60 that a trial has"),
        (
            {"sampler": "random", "scheduler": rtrain.Population(every=15)},
            "a population meets at evaluations, which come",
        ),
        ({"sampler": "random", "scheduler": rtrain.Population(every=60)}, "60 steps, but a trial has no more than 60"),
    ],
)
def test_what_no_search_can_do(run: Any, search: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rtrain.tune(run, SPACE, search=rtrain.Search(**search))
    assert not Path(run.folder).exists()


@pytest.mark.parametrize(("key", "values"), [("model.dim", (8, 16)), ("cluster.workers", (1, 2))])
def test_a_population_takes_over_weights_that_fit(run: Any, key: str, values: tuple[int, ...]) -> None:
    search = rtrain.Search(sampler="random", scheduler=rtrain.Population(every=20))
    with pytest.raises(ConfigError, match=f"{key} cannot change within a population"):
        rtrain.tune(run, {key: rtrain.choice(*values)}, search=search)


def test_a_scheduler_needs_an_evaluation_within_the_run(run: Any) -> None:
    late = rtrain.override(run, {"evaluation.every": rtrain.Duration(steps=100)})
    with pytest.raises(
        ConfigError, match="the first comes after 100 steps, but a trial has 60. Lower evaluation.every"
    ):
        rtrain.tune(late, SPACE, search=rtrain.Search(scheduler=rtrain.Asha()))


def test_what_a_search_learns_from_is_there(run: Any) -> None:
    with pytest.raises(ConfigError, match="--warm: there is no search in 'nowhere'"):
        rtrain.tune(run, SPACE, trials=1, warm="nowhere")
    with pytest.raises(ConfigError, match="--warm: 'random' learns nothing of earlier trials. Give --sampler tpe, or"):
        rtrain.tune(run, SPACE, search=rtrain.Search(sampler="random"), warm="nowhere")


def test_a_scheduler_needs_evaluations_by_steps(run: Any) -> None:
    by_clock = rtrain.override(run, {"evaluation.every": rtrain.Duration(seconds=5.0)})
    with pytest.raises(ConfigError, match="Asha compares trials at equal steps, but evaluation.every is 5 seconds"):
        rtrain.tune(by_clock, SPACE, search=rtrain.Search(scheduler=rtrain.Asha()))
