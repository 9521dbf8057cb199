"""What a verb of the command line is."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOTHING = "none"
"""What a command line says to take back what was said before."""


class Argument:
    """An argument as `argparse` takes it."""

    def __init__(self, *names: str, under: str = "", **options: Any):
        """`under`: the heading that it stands below in `--help`; none: with what every verb takes."""
        self.names, self.under, self.options = names, under, options


def under(heading: str, *arguments: Argument) -> tuple[Argument, ...]:
    """The same arguments, below a heading of `--help`."""
    return tuple(Argument(*one.names, under=heading, **one.options) for one in arguments)


@dataclass(frozen=True)
class Verb:
    """A verb, or an action of one."""

    name: str
    text: str
    """What it does, for `--help`."""
    arguments: tuple[Argument, ...] = ()
    run: Callable[[argparse.Namespace], int] | None = None
    """Does it and prints the answer, with `options.json` as one line; returns the exit code."""
    actions: tuple["Verb", ...] = ()
    """Of which one is to be named, where the verb itself does nothing."""
    example: str = ""
    """What stands below the options in `--help`, line by line as it is."""
    again: str = "does it, or goes on; what a cluster was told goes on there"
    """What the same command does after an interruption."""


def answer(options: argparse.Namespace, answer: dict[str, Any], text: object) -> None:
    """Print it: as text, or with `--json` as one line."""
    print(json.dumps(answer) if options.json else text)
