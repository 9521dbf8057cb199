"""Modules of one's own: a stored config names its classes by them, and a command has to import them first."""

import argparse
import os
import sys
from importlib import import_module

from rtrain.cli.verb import Argument
from rtrain.errors import UserError

MODULE = Argument(
    "--module", action="append", default=[], metavar="NAME",
    help="that has a class of your own which the run is of, as Python imports it from this folder",
)  # fmt: skip


def import_own(options: argparse.Namespace) -> None:
    """From wherever Python looks, or the folder that the command is called in.

    Raises:
        UserError: there is no such module.
    """
    modules = getattr(options, "module", [])
    if modules:
        sys.path.append(os.getcwd())  # behind all others: a file named like a package of theirs is not meant
    for name in modules:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".removeprefix(f"{error.name}.") == f"{name}.":
                raise UserError(f"--module {name}: it imports {error.name!r}, which is not there. Install it") from None
            raise UserError(f"--module: {error}. Call rtrain in the folder that has it") from None
