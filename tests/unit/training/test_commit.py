"""The commit that a run was started from."""

import sys
from pathlib import Path

import pytest

from rtrain.training.code import code_of_recipe
from tests.unit.training.test_code import git


def commit_of(script: Path) -> str:
    return code_of_recipe(str(script)).short


def committed(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    return git(folder, "rev-parse", "--short=12", "HEAD")


def test_the_commit_of_the_scripts_folder_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text("1\n")
    assert commit_of(script) == ""  # no repository
    git(tmp_path, "init", "-q")
    assert commit_of(script) == ""  # no commit yet
    commit = committed(tmp_path)
    assert commit_of(script) == commit
    (tmp_path / "runs.txt").write_text("left by a run, not a change\n")
    assert commit_of(script) == commit
    script.write_text("2\n")
    assert commit_of(script) == f"{commit}+changes"


def test_of_a_command_in_another_checkouts_environment_it_is_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `rtrain repeat`, whose script lies in `.venv/bin` of wherever that is."""
    other, here = tmp_path / "other", tmp_path / "here"
    script = other / ".venv" / "bin" / "rtrain"
    script.parent.mkdir(parents=True)
    script.write_text("1\n")
    here.mkdir()
    (here / "recipe.py").write_text("2\n")
    for folder in (other, here):
        git(folder, "init", "-q")
    commits = [committed(folder) for folder in (other, here)]
    monkeypatch.setattr(sys, "prefix", str(other / ".venv"))
    monkeypatch.chdir(here)
    assert commit_of(script) == commits[1] != commits[0]
