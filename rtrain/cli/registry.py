"""What all verbs of the registry take, and how they open it."""

import argparse
from typing import TYPE_CHECKING

from rtrain.cli.verb import Argument

if TYPE_CHECKING:
    from rtrain.release.registry import Registry


def registry_of(options: argparse.Namespace) -> "Registry":
    """The one that the arguments name."""
    from rtrain.release.registry import Registry

    return Registry(options.registry, options.audit)


REGISTRY = (
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
