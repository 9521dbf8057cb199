"""What a search shows on a terminal, and in a log."""

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from rtrain.errors import ConfigError
from rtrain.tuning import board
from rtrain.tuning.board import Board, Point
from rtrain.tuning.conductor import objectives_of
from rtrain.tuning.journal import Entry
from rtrain.tuning.options import Search

AUC = {"auc": "max"}


def entry(number: int, auc: float | None, ended: Any = "finished") -> Entry:
    values = {} if auc is None else {"auc": auc}
    return Entry(number=number, drawn={}, changes={"optim.lr": 0.01}, ended=ended, values=values, step=30)


def test_on_a_terminal_the_table_has_who_is_under_way_and_then_the_best() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100, height=40)
    with Board("search", AUC, 8, console=console) as shown:
        shown.show([entry(0, 0.6), entry(1, 0.8), entry(2, None, ended="")], {2: Point(20, {"auc": 0.75})})
        assert shown._live is not None
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.split() for line in drawn.splitlines()]
    last = [words for words in lines if words and words[0] in "012"][-3:]
    assert last == [
        ["2", "0.01", "0.75", "20", "under", "way"],
        ["1", "0.01", "0.8", "30", "finished"],
        ["0", "0.01", "0.6", "30", "finished"],
    ]
    assert "2 of 8 trials ended, 1 under way (best 0.8 of trial 1)" in drawn


def test_in_a_log_there_are_lines_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    with Board("search", AUC, 8, console=Console(file=StringIO(), width=100)) as shown:
        shown.show([entry(0, 0.6)], {})
        assert capsys.readouterr().err == ""  # too early for the next line
        monkeypatch.setattr(board, "EVERY_S", 0.0)
        shown.show([entry(0, 0.6)], {})
        shown.say("trial 0 finished")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("search: 1 of 8 trials ended, 0 under way (best 0.6 of trial 0); ")
    assert second == "search: trial 0 finished"


def test_a_table_of_many_trials_stays_short() -> None:
    shown = Board("search", AUC, 100)
    shown.show([entry(n, n / 100) for n in range(60)], {})
    assert shown.table().row_count == board.ROWS


def test_what_costs_can_be_weighed_where_there_is_a_price(run: Any) -> None:
    asked = Search(objectives=("auc", "cost", "latency_ms"), price=2.0)
    assert objectives_of(run, asked) == {"auc": "max", "cost": "min", "latency_ms": "min"}
    with pytest.raises(ConfigError, match=r"search.objectives: cost needs search.price \(--price\)"):
        objectives_of(run, replace(asked, price=None))
    with pytest.raises(ConfigError, match="price: 2 limits nothing without search.cost, and is not weighed"):
        Search(price=2.0)


def test_no_latency_of_a_model_that_generates() -> None:
    from recipes.gpt_stdlib import run

    with pytest.raises(ConfigError, match="latency_ms is of models that rank or retrieve; Decoder generates"):
        objectives_of(run(), Search(objectives=("loss", "latency_ms")))
