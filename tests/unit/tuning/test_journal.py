"""What a search knows, in its trials' folders; which trials are best; what a later start may have otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rtrain
from rtrain.checkpoint.fence import Fenced
from rtrain.errors import CheckpointError, ConfigError, RunFailed
from rtrain.tuning.fork import fork
from rtrain.tuning.journal import Entry, Journal
from rtrain.tuning.member import following_generation
from rtrain.tuning.options import Asha, Search
from rtrain.tuning.page import is_search, report_of
from rtrain.tuning.pareto import front, ranked
from rtrain.tuning.result import tuned
from rtrain.tuning.space import choice, loguniform
from rtrain.tuning.trials import run_of
from rtrain.tuning.words import ended_line, standing_line

SPACE = {"optim.lr": loguniform(1e-4, 1e-1), "model.top": choice((8,), (16, 8))}
AUC = {"auc": "max"}
BOTH = {"auc": "max", "parameters": "min"}


def entry(number: int, auc: float | None, ended: Any = "finished", parameters: float = 1.0, **more: Any) -> Entry:
    values = {} if auc is None else {"auc": auc, "parameters": parameters}
    drawn = {"optim.lr": 0.01 * (number + 1), "model.top": 1}
    return Entry(
        number=number, drawn=drawn, changes={"optim.lr": drawn["optim.lr"], "model.top": "(16, 8)"}, ended=ended,
        values=values, best_step=20, step=30, **more,
    )  # fmt: skip


def test_what_is_written_is_there_for_the_next_start(run: Any) -> None:
    journal = Journal(run)
    journal.write(entry(0, 0.7))
    journal.write(entry(1, None, ended=""))
    again = Journal(run)
    assert again.entries == journal.entries
    assert [e.number for e in again.open] == [1]
    assert again.entries[1].run == "trial-0001"
    assert again.points(again.entries[1]) == []
    assert again.spent() == {"seconds": 0.0, "worker_seconds": 0.0, "longest": 0.0}


def test_who_lost_the_search_writes_nothing(run: Any) -> None:
    def check() -> None:
        raise Fenced("another one has it")

    with pytest.raises(Fenced):
        Journal(run, check).write(entry(0, 0.7))
    assert Journal(run).entries == {}


def test_the_same_search_goes_on_with_more_and_another_one_is_refused(run: Any) -> None:
    Journal(run).open_as(SPACE, Search(trials=4), AUC)
    Journal(run).open_as(SPACE, Search(trials=9, hours=2.0, concurrent=2), AUC)
    with pytest.raises(ConfigError, match=r"space optim.lr: loguniform\(0.0001, 0.1\) -> loguniform\(0.001, 0.1\)"):
        Journal(run).open_as(SPACE | {"optim.lr": loguniform(1e-3, 1e-1)}, Search(), AUC)
    with pytest.raises(ConfigError, match="search sampler: tpe -> random"):
        Journal(run).open_as(SPACE, Search(sampler="random"), AUC)
    with pytest.raises(ConfigError, match="search scheduler"):
        Journal(run).open_as(SPACE, Search(scheduler=Asha()), AUC)
    with pytest.raises(ConfigError, match="global_batch: 512 -> 256"):
        Journal(rtrain.override(run, {"global_batch": 256})).open_as(SPACE, Search(), AUC)
    Journal(rtrain.override(run, {"faults.max_failures": 9})).open_as(SPACE, Search(), AUC)


def test_the_folder_of_a_run_is_none_of_a_search(run: Any) -> None:
    Path(run.folder).mkdir(parents=True)
    (Path(run.folder) / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run's folder. Give the search a name of its own"):
        Journal(run).open_as(SPACE, Search(), AUC)


def test_a_trial_is_the_recipe_with_its_values_in_a_folder_of_its_own(run: Any) -> None:
    made = run_of(run, SPACE, entry(3, None, ended=""))
    assert made.folder == f"{run.folder}/trials/trial-0003"
    assert made.model.top == (16, 8)
    assert made.checkpoint.every == run.evaluation.every  # what is reported is committed
    assert not made.checkpoint.background


def test_the_best_come_first_and_a_stopped_one_behind_all_that_finished() -> None:
    entries = [
        entry(0, 0.6),
        entry(1, 0.9, ended="stopped"),
        entry(2, 0.7),
        entry(3, None, ended="failed"),
        entry(4, 0.7),
    ]
    assert [e.number for e in ranked(entries, AUC)] == [2, 4, 0, 1]
    assert [e.number for e in ranked(entries, {"auc": "min"})] == [0, 2, 4, 1]


def test_the_front_is_what_no_other_trial_beats_in_all_objectives() -> None:
    entries = [
        entry(0, 0.6, parameters=5),
        entry(1, 0.7, parameters=9),
        entry(2, 0.65, parameters=9),
        entry(3, 0.5, parameters=1),
    ]
    assert [e.number for e in front(entries, BOTH)] == [0, 1, 3]
    assert [e.number for e in ranked(entries, BOTH)] == [1, 0, 3, 2]
    equal = [entry(0, 0.6, parameters=5), entry(1, 0.6, parameters=5)]
    assert [e.number for e in front(equal, BOTH)] == [0, 1]


def test_what_was_found_trains_under_a_name_of_its_own(run: Any) -> None:
    entries = [entry(0, 0.6), entry(1, 0.8, run="trial-0001-g2")]
    entries.append(entry(2, None, ended="refused", error="it does not fit"))
    found = tuned(run, SPACE, entries, AUC, command="python r.py train", report="r.html", closed="hours: over")
    assert found.run.name == "search-best"
    assert found.run.optim.lr == 0.02
    assert found.run.handoff == run.handoff  # trials export nothing, the best run does
    assert found.command == "python r.py train --name search-best --optim.lr 0.02 --model.top 16,8"
    assert found.checkpoint == f"{run.folder}/trials/trial-0001-g2/checkpoints/step-00000020"
    assert rtrain.override(run, {"model.top": "16,8"}).model.top == (16, 8)  # as the command line says it
    lines = str(found).splitlines()
    assert lines[0].split() == ["trial", "optim.lr", "model.top", "auc", "steps"]
    assert "refused: it does not fit" in str(found)
    assert "ended before its trials had: hours: over" in str(found)
    told = json.loads(json.dumps(found.to_json()))
    assert told["best"] == {"optim.lr": 0.02, "model.top": [16, 8]}
    assert [t["ended"] for t in told["trials"]] == ["finished", "finished", "refused"]


def test_nothing_found_says_what_the_first_one_said(run: Any) -> None:
    with pytest.raises(RunFailed, match="no trial came to a value of auc; the first said: the loss is nan"):
        tuned(
            run, SPACE, [entry(0, None, ended="failed", error="the loss is nan")], AUC, command="", report="", closed=""
        )


def test_its_page_is_written_while_it_runs(run: Any) -> None:
    journal = Journal(run)
    journal.open_as(SPACE, Search(), BOTH)
    assert is_search(run.folder)
    assert not is_search(run.storage)
    report_of(run.folder)
    assert "No trial has come to an evaluation yet" in (Path(run.folder) / "report.html").read_text()
    for number in range(5):
        journal.write(entry(number, 0.6 + number / 100, parameters=float(number)))
    journal.write(entry(5, 0.5, ended="stopped"))
    journal.write(entry(6, None, ended="failed", error="<b>nan</b>"))
    page = Path(report_of(run.folder)).read_text()
    assert page.count("<svg") == 5  # in their order, one against the other, all fields, two fields
    assert "failed: &lt;b&gt;nan&lt;/b&gt;" in page
    assert "5 finished, 1 stopped, 1 failed" in page
    assert "Best: trial 4, auc 0.64" in page


def test_what_it_says_on_the_way() -> None:
    entries = [entry(0, 0.6), entry(1, 0.8), entry(2, None, ended="")]
    assert ended_line(entries[1], AUC, entries, 8) == (
        "trial 1 (2 of 8 ended) finished at step 30, best at step 20: auc 0.8 (best 0.8 of trial 1), "
        "with optim.lr 0.02, model.top (16, 8)"
    )
    assert standing_line(AUC, entries, 8, 120.0) == (
        "2 of 8 trials ended, 1 under way (best 0.8 of trial 1); 2 min so far, about 6 min more"
    )
    failed = entry(3, None, ended="failed", error="rank 1: nan")
    assert "trial 3 (1 of 8 ended) failed (rank 1: nan), with" in ended_line(failed, AUC, [failed], 8)


def test_a_member_that_takes_anothers_place_is_a_run_of_a_new_name() -> None:
    config = {"trial_number": 7, "optim.lr": 0.02, "model.top": 0}
    member, best = entry(1, 0.5, ended="", run="trial-0001"), entry(7, 0.9, ended="", run="trial-0007-g3")
    first = following_generation(member, best, 40, config, SPACE)
    assert (first.run, first.source) == ("trial-0001-g1", "trial-0007-g3@40")
    assert first.changes == {"optim.lr": 0.02, "model.top": "(8,)"}
    assert following_generation(first, best, 60, config, SPACE).run == "trial-0001-g2"


def test_a_copied_checkpoint_is_whole_or_none(tmp_path: Path) -> None:
    source = tmp_path / "a" / "checkpoints" / "step-00000010"
    source.mkdir(parents=True)
    for name in ("rank-00000.safetensors", "manifest.json", "COMMITTED"):
        (source / name).write_text(name)
    (tmp_path / "a" / "history.jsonl").write_text('{"kind": "valid", "step": 10}\n{"kind": "valid", "step": 20}\n')
    fork(str(tmp_path / "a"), 10, str(tmp_path / "b"))
    copied = tmp_path / "b" / "checkpoints" / "step-00000010"
    assert sorted(f.name for f in copied.iterdir()) == ["COMMITTED", "manifest.json", "rank-00000.safetensors"]
    assert (tmp_path / "b" / "history.jsonl").read_text() == '{"kind": "valid", "step": 10}\n'
    (copied / "COMMITTED").unlink()  # as if it had been cut off
    fork(str(tmp_path / "a"), 10, str(tmp_path / "b"))
    assert (copied / "COMMITTED").read_text() == "COMMITTED"
    with pytest.raises(CheckpointError, match="no checkpoint of step 30"):
        fork(str(tmp_path / "a"), 30, str(tmp_path / "c"))


def test_a_later_start_knows_how_a_trial_ended(run: Any) -> None:
    journal = Journal(run)
    journal.write(entry(0, None, ended=""))
    Journal(run).write(replace(journal.entries[0], run="trial-0000-g1"))  # the trial's own process
    journal.write(replace(journal.again(0), ended="stopped", step=10))
    assert Journal(run).entries[0].ended == "stopped"
    assert Journal(run).entries[0].run == "trial-0000-g1"
