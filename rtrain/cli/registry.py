"""What all verbs of the registry take, and how they open it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rtrain.cli.verb import Argument, under
from rtrain.errors import UserError

if TYPE_CHECKING:
    from rtrain.release.registry import Registry


def registry_of(options: argparse.Namespace, *, makes: bool = False) -> "Registry":
    """The one that the arguments name; who `makes` one has it made where there is none.

    Raises:
        UserError: there is none.
    """
    from rtrain.release.registry import Registry

    file = options.registry.removeprefix("sqlite:///")
    if not makes and file != options.registry and not Path(file).exists():
        raise UserError(f"registry {options.registry!r}: there is none. rtrain promote, or release, makes it")
    return Registry(options.registry, options.audit)


REGISTRY = under(
    "registry",
    Argument(
        "--registry",
        default="sqlite:///runs/registry.db",
        metavar="URI",
        help="MLflow's: sqlite:///FILE, or a server's http:// (default: sqlite:///runs/registry.db)",
    ),
    Argument("--audit", default="runs/audit", metavar="FOLDER", help="the log of changes (default: runs/audit)"),
)
MODEL = Argument("model", metavar="NAME", help="what the registry calls the model")
REASON = Argument("--reason", required=True, help="why, for those who read the log")

REGIONS = Argument(
    "--regions", default="", metavar="NAME=HOST:PORT,...",
    help="one after the other, each with a Ray of its own; @PORT behind is that of its Ray Serve",
)  # fmt: skip
