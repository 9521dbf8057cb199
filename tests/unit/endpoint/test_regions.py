"""Regions as a command line says them, and how a release over them is told."""

import pytest

from rtrain.endpoint.regions import Reached, Region
from rtrain.errors import UserError


def test_a_command_line_says_regions() -> None:
    assert Region.of("eu=10.0.0.1:6379, us=10.1.0.1:6379@9000") == (
        Region(name="eu", address="10.0.0.1:6379"),
        Region(name="us", address="10.1.0.1:6379", port=9000),
    )


@pytest.mark.parametrize("text", ["", "eu", "eu=", "eu=host", "=h:1", "eu=h:1@x", "eu=h:1,", "eu=h:1,eu=h:2"])
def test_what_says_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--regions"):
        Region.of(text)


def test_how_it_ended_is_one_line() -> None:
    assert str(Reached(("eu", "us"))) == "the version answers all requests in eu, us"
    stopped = Reached(("eu",), "us", "take back: slow", ("asia",))
    told = "stopped at us (take back: slow); the version answers all requests in eu; asia was not asked any more"
    assert str(stopped) == told and stopped.to_json()["left"] == ["asia"]
    assert str(Reached((), "eu", "why")) == "stopped at eu (why); the version answers all requests nowhere"
    past = Reached(("us",), away=("eu",))
    assert not past.everywhere and past.to_json()["away"] == ["eu"] and Reached(("eu", "us")).everywhere
    looked = "eu cannot be joined, and has to be looked at (rtrain endpoints) once it can"
    assert str(past) == f"the version answers all requests in us; {looked}"
