"""Which code a start was of: a real git repository, one without a commit, none, and a machine without git."""

import subprocess
from pathlib import Path

import pytest

from rtrain.tracking.secrets import mask_lines
from rtrain.training import code
from rtrain.training.code import code_at, code_of_recipe, code_of_rtrain


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes" / "recipe.py").write_text("DIM = 8\n")
    git(root, "init", "-q", "-b", "wide")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


def test_a_clean_one(repository: Path) -> None:
    found = code_at(repository / "recipes")
    assert (found.root, found.commit, found.branch) == (f"{repository}", git(repository, "rev-parse", "HEAD"), "wide")
    assert (found.changes, found.text, found.cut, found.untracked, found.why) == ("", "", False, 0, "")
    git(repository, "checkout", "-q", "--detach")
    assert code_at(repository).branch == ""


def test_changes_and_untracked_files_are_told_and_a_secret_is_not(repository: Path) -> None:
    (repository / "recipes" / "recipe.py").write_text("DIM = 16\nHF_TOKEN = 'hunter2'\nURI = 's3://k:hunter2@b/x'\n")
    first = code_of_recipe(f"{repository}/recipes/recipe.py")
    assert first.changes and not first.untracked
    (repository / "new model.py").write_text("password = 'hunter2'\n")
    found = code_of_recipe(f"{repository}/recipes/recipe.py")
    assert found.changes == first.changes and found.untracked == 1  # an untracked file is named, and is no change
    assert "-DIM = 8\n+DIM = 16\n+HF_TOKEN = '***'\n" in found.text
    assert found.text.endswith("# untracked: new model.py\n") and "hunter2" not in found.text
    git(repository, "checkout", "-q", ".")
    (repository / "recipes" / "recipe.py").write_text("DIM = 32\n")
    git(repository, "add", "-A")  # staged is not committed either
    staged = code_at(repository)
    assert staged.changes not in ("", found.changes) and "+DIM = 32" in staged.text and not staged.untracked


def test_a_huge_diff_is_cut_at_a_line(repository: Path) -> None:
    (repository / "recipes" / "recipe.py").write_text("".join(f"x{i} = {i}\n" for i in range(300_000)))
    found = code_at(repository)
    assert found.cut and found.changes
    *lines, last = found.text.splitlines()
    assert last.startswith("# cut here") and lines[-1].startswith("+x") and " = " in lines[-1]
    assert code.MOST_BYTES - 100 < len(found.text) < code.MOST_BYTES + 100


def test_where_something_is_missing(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "not a git repository" in code_at(bare).why and code_at(bare).root == ""
    git(bare, "init", "-q")
    (bare / "a.py").write_text("1\n")
    begun = code_at(bare)
    assert begun.root == f"{bare}" and not begun.commit and begun.why.startswith("no commit: ")
    assert begun.text == "# untracked: a.py\n"
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", f"{shallow}")
    assert code_at(shallow).commit == git(repository, "rev-parse", "HEAD") and not code_at(shallow).why
    assert code_at(repository, known=bare / "a.py").root == ""  # a file of another place: not this one's code
    monkeypatch.setenv("PATH", str(bare))
    assert code_at(repository) == code.Code(why="git is not installed")


def test_git_that_does_not_answer_is_not_waited_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (slow / "git").chmod(0o755)
    monkeypatch.setattr(code, "GIT_S", 0.3)
    monkeypatch.setenv("PATH", f"{slow}:/usr/bin:/bin")
    assert code_at(repository).why.startswith("TimeoutExpired")


def test_rtrain_itself() -> None:
    found = code_of_rtrain()
    root = Path(code.__file__).parents[2]
    if (root / ".git").exists():
        assert found.root == f"{root}" and len(found.commit) == 40
    else:
        assert found.root == ""


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("+api_key = 'abc'", "+api_key = '***'"),
        ('+{"password": "a b", "n": 1}', '+{"password": "***", "n": 1}'),
        ('+os.environ["HF_TOKEN"] = "abc"', '+os.environ["HF_TOKEN"] = "***"'),
        ("+export AWS_SECRET_ACCESS_KEY=abc/d", "+export AWS_SECRET_ACCESS_KEY=***"),
        ("+key: str = field", "+key: str = field"),
        ("+max_tokens = '128'", "+max_tokens = '128'"),
        ("+tokenizer = 'bpe'", "+tokenizer = 'bpe'"),
        (" token = next(tokens)", " token = next(tokens)"),
        ("+get('https://x/y?api_key=abc')", "+get('https://x/y?api_key=***"),
    ],
)
def test_lines_of_code(line: str, masked: str) -> None:
    assert mask_lines(f"+++ b/recipe.py\n{line}\n").splitlines()[1].startswith(masked)


def test_lines_of_other_files_and_very_long_ones() -> None:
    assert mask_lines("+++ b/conf.yaml\n+password: abc\n+dim: 8\n") == "+++ b/conf.yaml\n+password: ***\n+dim: 8\n"
    assert mask_lines("--- a/.env\n+++ /dev/null\n-token=abc\n") == "--- a/.env\n+++ /dev/null\n-token=***\n"
    long = mask_lines("+++ b/n.ipynb\n+" + "A" * 1_000_000 + "\n")
    assert len(long) < 200 and "a line of 1000002 characters" in long
