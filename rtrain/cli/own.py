"""Modules of one's own: a stored config names its classes by them, and a command has to import them first."""

import argparse
import os
import sys
from importlib import import_module
from types import ModuleType

from rtrain.cli.verb import Argument
from rtrain.errors import UserError

MODULE = Argument(
    "--module", action="append", default=[], metavar="NAME",
    help="that has a class of your own which the run is of, as Python imports it from this folder",
)  # fmt: skip


def import_own(options: argparse.Namespace) -> None:
    """The modules that a command names, from wherever Python looks, or the folder that it is called in.

    Raises:
        UserError: there is no such module.
    """
    for name in getattr(options, "module", []):
        own_module(name, "--module")


def own_module(name: str, option: str) -> ModuleType:
    """One of them, imported; `option`: that names it.

    Raises:
        UserError: there is none, or it imports one that is not there.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # behind all others: a file named like a package of theirs is not meant
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".removeprefix(f"{error.name}.") == f"{name}.":
            raise UserError(f"{option} {name}: it imports {error.name!r}, which is not there. Install it") from None
        raise UserError(f"{option}: {error}. Call this in the folder that has it") from None
