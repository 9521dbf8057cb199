"""The command line in this process: what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest

from recipes.dlrm_movielens import debug, run
from rtrain.cli import console, golden, main

GOLDEN = Path(__file__).parents[1] / "golden"


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(run, debug, arguments=list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
        (["plan", "--optim.lrr", "1"], "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"),
        (["plan", "--optim.lr", "fast"], "optim.lr: expected float, got 'fast' (str)"),
        (["plan", "--optim.lr"], "optim.lr: no value given; write --optim.lr VALUE"),
        (["plan", "stray"], "command line: 'stray' is neither an option nor the value of one"),
        (["--launcher", "slurm"], "command line: argument --launcher: invalid choice: 'slurm'"),
        (["plan", "--parallel.tensor", "3"], "parallel: tensor(3) * pipeline(1) = 3 does not divide the 2 workers"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {said}")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert call(*words, "--json") == 2
    out, _ = capsys.readouterr()
    assert json.loads(out)["error"].startswith(said)
    assert json.loads(out)["exit_code"] == 2


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "--json", "--cluster.workers=4") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["world_size"] == 4
    assert {t["table"] for t in planned["tables"]} >= {"user_id", "item_id", "history"}


def test_config_shows_what_was_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "--optim.lr", "0.5", "--debug") == 0
    out = capsys.readouterr().out
    assert "optim.lr = 0.5" in out.splitlines()
    assert 'name = "dlrm-movielens-debug"' in out.splitlines()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    out = capsys.readouterr().out
    for word in ("train", "plan", "tune", "serve", "--launcher", "--fresh", "--optim.lr", "--parallel.zero_stage"):
        assert word in out
    # Each field with the docstring that stands under it.
    assert "Rows of a step over all workers" in " ".join(out.replace("│", " ").split())


def test_a_recipe_without_debug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(run, arguments=["plan", "--debug"])
    assert ended.value.code == 2
    assert "this recipe has no debug()" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 0, "VERB"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
        (["report", "/nowhere/at/all"], 2, "/nowhere/at/all"),
        (["serve", "/nowhere/at/all"], 2, "there is no export in '/nowhere/at/all'"),
        (["train", "nosuch.py"], 2, "there is no recipe 'nosuch.py'"),
        (["data", "get", "ml-1m"], 2, "ml-1m"),
        (["doctor", "--nosuch"], 2, "it takes no --nosuch"),
    ],
)
def test_console(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rtrain", *words])
    with pytest.raises(SystemExit) as ended:
        console()
    out, err = capsys.readouterr()
    assert ended.value.code == code
    assert said in (err if code else out)
    assert "Traceback" not in err


def test_the_console_hands_over_to_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "dlrm_movielens.py"
    monkeypatch.setattr("sys.argv", ["rtrain", "config", str(recipe), "--optim.lr", "0.25"])
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    with pytest.raises(SystemExit) as ended:
        console()
    assert ended.value.code == 0
    assert "optim.lr = 0.25" in capsys.readouterr().out


def test_errors_that_are_not_the_users_keep_their_traceback() -> None:
    def broken() -> object:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main(broken, arguments=["plan"])  # type: ignore[arg-type]


def test_golden_text_is_one_key_a_line() -> None:
    lines = golden(run()).splitlines()
    assert all(" = " in line for line in lines)
    assert "parallel.zero_stage = 1" in lines
