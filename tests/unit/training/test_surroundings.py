"""The commit that a run was started from."""

import subprocess
from pathlib import Path

from rtrain.training.surroundings import commit_of


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def test_the_commit_of_the_scripts_folder_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text("1\n")
    assert commit_of(str(script)) == ""  # no repository
    git(tmp_path, "init", "-q")
    assert commit_of(str(script)) == ""  # no commit yet
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit_of(str(script)) == commit
    (tmp_path / "runs.txt").write_text("left by a run, not a change\n")
    assert commit_of(str(script)) == commit
    script.write_text("2\n")
    assert commit_of(str(script)) == f"{commit}+changes"
    assert commit_of(str(tmp_path / "absent.py")) == ""
