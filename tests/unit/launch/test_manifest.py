"""manifest.json of real runs: of their starts, the code with its diff, what they were made from, and how they ended."""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import rtrain
from rtrain.errors import RunFailed
from rtrain.launch import manifest
from rtrain.launch.manifest import Codes
from rtrain.rehearsal.repeat import repeat
from rtrain.run import Run
from rtrain.storage import Folder
from tests.unit.release.runs import run_of, write_rows
from tests.unit.training.jobs import At, train
from tests.unit.training.test_code import git


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_rows(tmp_path)
    changes = {"duration.epochs": 1, "tracking.to": (), "checkpoint.every.steps": 4, "handoff.export": False}
    return rtrain.override(run_of(tmp_path, "small"), {**changes, "handoff.serve_check": False})


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a repository, and the script that is running."""
    root = tmp_path / "shop"
    root.mkdir()
    (root / "recipe.py").write_text("DIM = 8\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    monkeypatch.setattr(sys, "argv", [f"{root}/recipe.py", "train", "--data.token", "hunter2"])
    monkeypatch.setenv("HF_TOKEN", "hunter2-environment")
    return root


def starts(run: Run) -> list[dict[str, Any]]:
    return manifest.read_starts(Folder(run.folder))


def test_a_start_that_fails_one_that_resumes_on_other_code_and_one_that_finishes(run: Run, recipe: Path) -> None:
    with pytest.raises(RunFailed):
        train(run, callbacks=[At(6)])
    (first,) = starts(run)
    assert (first["outcome"]["state"], first["outcome"]["step"]) == ("failed", 6)
    assert "step 6: RuntimeError" in first["outcome"]["reason"]
    assert first["code"]["recipe"]["commit"] == git(recipe, "rev-parse", "HEAD")
    assert first["code"]["recipe"]["diff"] is None and first["code"]["recipe"]["branch"] == "main"

    (recipe / "recipe.py").write_text("DIM = 16\n")
    (recipe / "draft.py").write_text("x\n")
    done = train(run)
    first, second = starts(run)
    assert first["outcome"]["state"] == "failed"
    told = second["code"]["recipe"]
    diff = (Path(run.folder) / told["diff"]).read_text()
    assert "-DIM = 8\n+DIM = 16\n" in diff and diff.endswith("# untracked: draft.py\n")
    assert told["untracked"] == 1 and told["changes"] and not told["cut"]
    assert second["outcome"] | {"at": ""} == {"state": "finished", "step": done["steps"], "reason": "", "at": ""}
    assert second["parent"] is None and second["seed"] == run.seed and second["number"] == 2
    surroundings = json.loads((Path(run.folder) / "surroundings.json").read_text())
    assert second["data"] == surroundings["data"] and second["environment"] == surroundings["versions"]
    (node,) = surroundings["nodes"].values()
    assert second["environment"]["numpy"] and second["hardware"]["cores"] == node["cores"]
    assert second["plan"]["world"] == 1 and second["plan"]["axes"]["data"] == 1
    assert (Path(run.folder) / second["plan"]["placement"]).exists()
    assert second["command"].endswith("recipe.py train --data.token '***'")
    for file in (Path(run.folder) / "manifest.json", *(Path(run.folder) / "manifest").iterdir()):
        assert "hunter2" not in file.read_text()

    assert train(run)["steps"] == done["steps"] and len(starts(run)) == 2  # it had finished: no start


def test_without_git_and_without_a_repository(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [""])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    train(run)
    (only,) = starts(run)
    assert only["code"]["recipe"]["why"] == "git is not installed" and not only["code"]["recipe"]["commit"]
    assert only["outcome"]["state"] == "finished" and not (Path(run.folder) / "manifest").exists()


def test_one_that_is_interrupted_and_one_that_never_told(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(run, callbacks=[At(2, KeyboardInterrupt)])
    assert starts(run)[0]["outcome"]["state"] == "stopped"
    manifest.begin(run, Codes.here())  # and killed
    assert starts(run)[1]["outcome"] is None
    train(run)
    states = [start["outcome"]["state"] for start in starts(run)]
    assert states == ["stopped", "lost", "finished"]


def test_a_run_that_repeats_another_names_it_also_when_it_goes_on(run: Run, tmp_path: Path) -> None:
    train(run)
    assert repeat(run.folder, "again", launcher="inline").same
    again: Run = rtrain.override(run, {"name": "again"})
    assert starts(again)[0]["parent"] == {"kind": "repeat", "run": run.folder}
    train(rtrain.override(again, {"duration.epochs": 2}))
    assert starts(again)[1]["parent"] == {"kind": "repeat", "run": run.folder}


def test_a_manifest_that_is_broken_costs_no_start(run: Run) -> None:
    folder = Folder(run.folder)
    for content in (b'{"starts": [{"nu', b"[]", b'{"starts": 3}'):
        folder.write(manifest.MANIFEST, content)
        assert manifest.begin(run, Codes.here()) == 1
    manifest.end(run, 1, RunFailed("s3://k:hunter2@b is gone"))
    (only,) = starts(run)
    assert only["outcome"]["reason"] == "s3://k:***@b is gone"


@pytest.fixture
def remote() -> Iterator[str]:
    uri = f"memory://{uuid.uuid4().hex}"
    yield uri
    memory = fsspec.filesystem("memory")
    if memory.exists(uri):
        memory.rm(uri, recursive=True)


def test_a_remote_storage(run: Run, recipe: Path, remote: str) -> None:
    (recipe / "recipe.py").write_text("DIM = 16\n")
    there: Run = rtrain.override(run, {"storage": remote})
    train(there)
    (only,) = starts(there)
    diff = Folder(there.folder).read(only["code"]["recipe"]["diff"]).decode()
    assert only["outcome"]["state"] == "finished" and "+DIM = 16" in diff
