"""`rtrain goodput`: its answer, its picture, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from rtrain import cli

OPTIONS = {"nodes": 64, "mtbf-hours": 640, "checkpoint-s": 30, "restart-s": 300, "days": 7, "seeds": 3, "spares": 2}
GIVEN = ("goodput", *(word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["rtrain", *words])
        with pytest.raises(SystemExit) as ended:
            cli.console()
        return ended.value.code, *capsys.readouterr()

    return call


def test_json_is_one_line_and_says_what_was_found(command: Any, tmp_path: Path) -> None:
    picture = tmp_path / "goodput.png"
    code, out, _ = command(*GIVEN, "--price", "2.5", "--json", "--picture", str(picture))
    assert code == 0 and out.count("\n") == 1
    found = json.loads(out)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["chosen"] == found["best"]
    assert found["chosen"]["mean"] == max(point["mean"] for point in found["points"])
    assert found["cost"] == pytest.approx(66 * 8 * 7 * 24 * 2.5, rel=0.1)  # a node in 53 is away for 12 hours at most
    assert imread(picture).std() > 0.05  # something is drawn


def test_text_names_the_interval_that_was_asked_for(command: Any) -> None:
    code, out, _ = command(*GIVEN, "--checkpoint-every-s", "5400", "--elastic")
    assert code == 0
    assert "64 nodes x 8 devices, elastic, 2 spares, 7 days; 3 seeds" in out
    assert "a checkpoint every 1.5 h" in out and "best interval" in out and "Daly" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint-every-s", "often"], "--checkpoint-every-s: 'often' is no number of seconds"),
        (["--notice-s", "30"], "--notice-s: 30 is of preemptions"),
        (["--picture", "a.svg"], "--picture: 'a.svg' does not end in .png"),
        (["--picture", "/nowhere/a.png"], "--picture: '/nowhere/a.png' cannot be written (No such file or directory)"),
        (
            ["--mtbf-hours", "inf", "--checkpoint-every-s", "600", "--picture", "a.png"],
            "--picture: no work is ever lost here",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(command: Any, words: list[str], message: str) -> None:
    code, out, err = command(*GIVEN, *words)
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err and err.strip().count("\n") == 0


def test_help_teaches_with_an_example(command: Any) -> None:
    code, out, _ = command("goodput", "--help")
    assert code == 0
    assert "    rtrain goodput --nodes 512 --mtbf-hours 20000" in out
