"""The runs of a folder as a table: what each is, which are wanted, which comes first; and one of them once more."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rtrain.cli.console import _console
from rtrain.errors import UserError
from rtrain.rehearsal.repeat import _other_code, repeat
from rtrain.report.compare import compare
from rtrain.report.listing import runs_in, spell_runs
from rtrain.storage import Folder
from tests.unit.release.runs import run_of, write_rows
from tests.unit.training.jobs import train
from tests.unit.training.test_code import git


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listing")
    write_rows(folder)
    for name, lr in (("good", 2e-2), ("wrong", 1e-9)):
        train(run_of(folder, name, lr=lr))
    runs = folder / "runs"
    half = runs / "half"  # stopped before its end: no result
    half.mkdir()
    (half / "run.json").write_text((runs / "good" / "run.json").read_text().replace('"good"', '"half"'))
    lines = [
        line for line in (runs / "good" / "history.jsonl").read_text().splitlines() if json.loads(line)["step"] < 20
    ]
    (half / "history.jsonl").write_text("\n".join(lines))
    (runs / "no-run").mkdir()
    (runs / "a-file").write_text("x")
    return runs


def names(storage: Path, *where: str, by: str = "") -> list[str]:
    return [run.name for run in runs_in(f"{storage}", where, by)]


def test_all_runs_are_there_the_newest_first(storage: Path) -> None:
    found = {run.name: run for run in runs_in(f"{storage}")}
    assert next(iter(found)) == "half" and set(found) == {"good", "wrong", "half"}
    good, half = found["good"], found["half"]
    result = json.loads((storage / "good" / "result.json").read_text())
    assert (good.state, good.model, good.steps, good.metrics["auc"]) == (
        "finished",
        "DLRM",
        result["steps"],
        result["test"]["auc"],
    )
    assert half.state == "unfinished" and 0 < half.steps < 20 and 0.5 < half.metrics["auc"] < 1 and half.seconds is None


def test_a_searchs_trials_are_there_by_its_folder_and_among_other_runs(storage: Path, tmp_path: Path) -> None:
    """And beside each other by the metrics that they have, which are of the validation split."""
    trials = tmp_path / "runs" / "searched" / "trials"
    trials.mkdir(parents=True)
    (trials.parent / "search.json").write_text("{}")
    for name in ("trial-0000", "trial-0001"):
        shutil.copytree(storage / "good", trials / name)
        (trials / name / "result.json").unlink()
        run = json.loads((trials / name / "run.json").read_text())
        (trials / name / "run.json").write_text(json.dumps(run | {"name": name}))
        manifest = json.loads((trials / name / "manifest.json").read_text())
        for start in manifest["starts"]:
            start["parent"] = {"kind": "trial", "search": "runs/searched", "number": 0}
        (trials / name / "manifest.json").write_text(json.dumps(manifest))
    wanted = {"searched/trial-0000", "searched/trial-0001"}
    assert set(names(trials.parent)) == wanted and set(names(tmp_path / "runs")) == wanted
    shutil.copytree(storage / "good", tmp_path / "runs" / "good")
    assert set(names(tmp_path / "runs")) == {"good", *wanted}
    assert set(names(tmp_path / "runs", "parent=searched")) == wanted
    found = compare([f"{trials}/trial-0000", f"{trials}/trial-0001"])
    (auc,) = (row for row in found["metrics"] if row["name"] == "auc")
    last = json.loads([x for x in (trials / name / "history.jsonl").read_text().splitlines() if '"valid"' in x][-1])
    assert auc["values"] == [last["auc"]] * 2 and found["split"] == "validation"


def test_of_trials_the_journal_tells_what_became_of_them(storage: Path, tmp_path: Path) -> None:
    """One that was stopped, and one of a population whose place a run from another one's checkpoint has taken."""
    trials = tmp_path / "searched" / "trials"
    (tmp_path / "searched").mkdir()
    (tmp_path / "searched" / "search.json").write_text("{}")
    trial: dict[str, Any] = {"kind": "trial", "search": "runs/searched"}
    fork = trial | {"kind": "fork", "run": "runs/searched/trials/trial-0000", "step": 10}
    for name, parent in (("trial-0000", trial), ("trial-0001", trial), ("trial-0001-g1", fork)):
        shutil.copytree(storage / "good", trials / name)
        (trials / name / "result.json").unlink()
        manifest = json.loads((trials / name / "manifest.json").read_text())
        manifest["starts"][-1] |= {"parent": parent, "outcome": None}
        (trials / name / "manifest.json").write_text(json.dumps(manifest))
    best = {"auc": 0.625, "parameters": 7, "seconds": 12.5}
    told = {"run": "trial-0000", "ended": "stopped", "step": 12, "best_step": 10, "values": best}
    (trials / "trial-0000" / "trial.json").write_text(json.dumps(told))
    (trials / "trial-0001" / "trial.json").write_text(json.dumps(told | {"run": "trial-0001-g1", "ended": "finished"}))
    found = {Path(run.folder).name: run for run in runs_in(str(trials.parent), ["parent=searched"])}
    assert {name: run.state for name, run in found.items()} == {
        "trial-0000": "stopped", "trial-0001": "replaced", "trial-0001-g1": "finished",
    }  # fmt: skip
    stopped, replaced, made = (found[name] for name in sorted(found))
    assert (stopped.metrics["auc"], stopped.steps, stopped.seconds) == (0.625, 12, 12.5) == (
        made.metrics["auc"], made.steps, made.seconds,
    )  # fmt: skip
    assert made.made == "fork" and "parameters" not in made.metrics and replaced.metrics["auc"] != 0.625
    pair = compare([f"{trials}/trial-0000", f"{trials}/trial-0001-g1"])
    assert [(run["finished"], run["best_step"]) for run in pair["runs"]] == [(False, 10), (True, 10)]
    assert next(row["values"] for row in pair["metrics"] if row["name"] == "auc") == [0.625, 0.625]


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (["state=finished"], {"good", "wrong"}),
        (["optim.lr<=1e-9"], {"wrong"}),
        (["model.dim=8", "name!=half"], {"good", "wrong"}),
        (["seconds>0"], {"good", "wrong"}),
        (["steps>100000"], set()),
    ],
)
def test_those_that_are_wanted(storage: Path, where: list[str], wanted: set[str]) -> None:
    assert set(names(storage, *where)) == wanted


def test_those_with_a_metric_of_so_much(storage: Path) -> None:
    found = {run.name: run.metrics["auc"] for run in runs_in(f"{storage}")}
    limit = (found["good"] + found["wrong"]) / 2
    assert found["good"] > limit > found["wrong"]
    assert set(names(storage, f"auc>={limit}")) == {name for name, auc in found.items() if auc >= limit}
    assert names(storage, f"auc >= {limit}", "state=finished") == ["good"]
    assert set(names(storage, f"auc<{limit}", "state=finished")) == {"wrong"}


def test_those_of_the_same_data(storage: Path) -> None:
    data = {run.name: run.data for run in runs_in(f"{storage}")}
    assert data["good"] == data["wrong"] != data["half"] == ""  # of which no worker has told anything
    assert set(names(storage, f"data={data['good']}")) == {"good", "wrong"}
    assert names(storage, "data=0") == []


def test_the_best_comes_first(storage: Path) -> None:
    assert names(storage, "state=finished", by="auc") == ["good", "wrong"]
    assert names(storage, by="optim.lr")[0] == "wrong" and names(storage, by="seconds")[-1] == "half"


@pytest.mark.parametrize(
    ("where", "by", "said"),
    [
        ("acu>0.7", "", "--where: no run has 'acu'; did you mean 'auc'"),
        ("auc", "", "--where: a key, one of"),
        ("auc>much", "", "--where: auc is a number, got 'much'"),
        ("model>DLRM", "", "only = and != compare it"),
        ("auc>0", "lr", "--by: no run has 'lr'"),
    ],
)
def test_what_is_no_condition(storage: Path, where: str, by: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        names(storage, where, by=by)
    assert said in str(refused.value)


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        runs_in(f"{tmp_path}")


def test_the_command_line(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _console(["runs", f"{storage}", "--by", "auc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    aucs = [run["metrics"]["auc"] for run in found]
    assert aucs == sorted(aucs, reverse=True) and len(aucs) == 3 and "config" not in found[0]
    assert _console(["runs", f"{storage}", "--where", "state=finished"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].split() == [
        "run",
        "model",
        "state",
        "steps",
        "metric",
        "took",
        "written",
        "commit",
    ]
    assert spell_runs(runs_in(f"{storage}")).count("DLRM") == 3
    two = [f"{storage}/good", f"{storage}/half", "--out", f"{tmp_path}/compare.html", "--json"]
    told = [_console([*words, *two]) or capsys.readouterr().out for words in (["compare"], ["runs", "compare"])]
    assert told[0] == told[1] and "good" in told[0]


def test_a_run_once_more_is_the_same(storage: Path) -> None:
    found = repeat(f"{storage}/good", "good-again", launcher="inline")
    assert found.same and found.steps >= 4 and found.metrics >= 2, found
    assert names(storage, "parent=good", "made=repeat", "outcome=finished") == ["good-again"]
    listed = {run.name: run for run in runs_in(f"{storage}")}
    code = json.loads((storage / "good" / "manifest.json").read_text())["starts"][0]["code"]["recipe"]
    assert listed["good"].branch == code["branch"] and listed["half"].outcome == ""
    with pytest.raises(UserError, match="there is a run 'good-again' already"):
        repeat(f"{storage}/good", "good-again", launcher="inline")
    with pytest.raises(UserError, match="there is no finished run in"):
        repeat(f"{storage}/half", "other", launcher="inline")


def test_a_repetition_that_was_interrupted_goes_on_and_nothing_else_of_its_name(storage: Path) -> None:
    with pytest.raises(UserError, match="there is a run 'half' already"):
        repeat(f"{storage}/good", "half", launcher="inline")
    (storage / "good-again" / "result.json").unlink()
    assert _console(["runs", "repeat", f"{storage}/good/", "--launcher", "inline"]) == 0, "named so by itself"
    starts = json.loads((storage / "good-again" / "manifest.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_trial_of_a_search_has_no_result_and_may_be_finished(storage: Path) -> None:
    trial = storage / "trial-0000"
    shutil.copytree(storage / "good", trial)
    (trial / "result.json").unlink()
    (trial / "trial.json").write_text("{}")
    assert {Path(run.folder).name: run.state for run in runs_in(f"{storage}")}["trial-0000"] == "finished"
    with pytest.raises(UserError, match="is a trial of a search, which is not judged on the test split"):
        repeat(f"{trial}", "other", launcher="inline")
    shutil.rmtree(trial)


def test_a_difference_is_told(storage: Path) -> None:
    stored: dict[str, Any] = json.loads((storage / "good" / "result.json").read_text())
    stored["test"]["auc"] += 1e-12
    changed = storage / "changed"
    changed.mkdir()
    for name in ("run.json", "history.jsonl"):
        (changed / name).write_text((storage / "good" / name).read_text())
    (changed / "result.json").write_text(json.dumps(stored))
    surroundings = json.loads((storage / "good" / "surroundings.json").read_text())
    (changed / "surroundings.json").write_text(json.dumps(surroundings | {"data": "0123"}))
    said: list[str] = []
    found = repeat(f"{changed}", "changed-again", launcher="inline", say=said.append)
    assert f"the data were others: fingerprint 0123 then, {surroundings['data']} now" in said
    assert not [line for line in said if line.startswith("the code")]  # neither tells of its code
    assert not found.same and len(found.different) == 1 and found.different[0].startswith("auc: "), found


def test_other_code_is_told_of_before_a_run_is_repeated(storage: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "recipe.py").write_text("DIM = 8\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    stored = json.loads((storage / "good" / "manifest.json").read_text())
    (start,) = stored["starts"]
    commit = git(tmp_path, "rev-parse", "HEAD")
    start["code"]["recipe"] = {"root": f"{tmp_path}", "commit": commit, "changes": "", "diff": None}
    folder = storage / "good"
    (folder / "manifest.json").write_text(json.dumps(stored))
    assert _other_code(Folder(f"{folder}"), "") == []
    (tmp_path / "recipe.py").write_text("DIM = 16\n")
    (line,) = _other_code(Folder(f"{folder}"), "")
    assert line.startswith(f"the recipe's code was at {commit[:12]}, and is at {commit[:12]} with changes ")
    start["code"]["recipe"]["root"] = f"{tmp_path}/gone"
    (folder / "manifest.json").write_text(json.dumps(stored))
    (line,) = _other_code(Folder(f"{folder}"), "")
    assert line == f"the recipe's code was at {commit[:12]}, which cannot be compared here (no {tmp_path}/gone)"
