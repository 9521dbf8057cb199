"""How a language model answers, as a command says it."""

import argparse
from typing import Any

import pytest

from rtrain import config
from rtrain.cli.decoding import decoding_of
from rtrain.errors import ConfigError, RtrainError
from rtrain.language.decoding import Decoding
from rtrain.language.guard import Guard

NOTHING: dict[str, Any] = {"lanes": 0, "guesses": 0, "draft": "", "guard": ""}


def said(**options: Any) -> Any:
    return decoding_of(argparse.Namespace(**NOTHING | options))


def test_what_is_not_said_is_none() -> None:
    assert said() is None
    assert said(lanes=2) == Decoding(lanes=2) and said(guesses=3) == Decoding(guesses=3)
    assert said(guard="rtrain.language.guard:Guard") == Decoding(guard=Guard())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lanes": -1}, "Decoding.lanes: must be at least 1, got -1"),
        ({"guesses": -2}, "Decoding.guesses: must be at least 0, got -2"),
        ({"draft": "runs/nowhere"}, "there is no export in 'runs/nowhere'"),
        ({"guard": "rtrain.models.dlrm:DLRM"}, "is no rtrain.Guard"),
        ({"guard": "nowhere:Guard"}, "nowhere"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], why: str) -> None:
    with pytest.raises(RtrainError, match=why):
        said(**options)


def test_it_is_kept_with_a_version() -> None:
    of = Decoding(lanes=2, guesses=4, guard=Guard())
    assert config.from_dict(config.to_dict(of)) == of
    assert of.options() == {
        "lanes": 2, "waiting": 64, "together": True, "guesses": 4, "draft": "", "guard": Guard()
    }  # fmt: skip
    with pytest.raises(ConfigError, match="Decoding.waiting: must be at least 0"):
        Decoding(waiting=-1)
