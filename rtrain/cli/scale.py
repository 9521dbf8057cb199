"""What a command line says of replicas: `serve`, also of a recipe, and `release`."""

import argparse
from typing import Any

from rtrain.cli.verb import Argument, under
from rtrain.errors import UserError

SCALE = under(
    "replicas",
    Argument("--replicas", metavar="N", help="how many answer, or by load 1-8 (default: 1)"),
    Argument(
        "--ahead-s", type=float, metavar="S",
        help="of replicas by load: how long one takes to be there, and so how far the load is foreseen, by its trend "
        "(default: 0, the load of now alone)",
    ),
    Argument(
        "--season-s", type=float, metavar="S",
        help="of replicas by load: after how long the load begins anew, as 86400 of a day (default: 0, never)",
    ),
    Argument(
        "--gpus", type=float, metavar="N",
        help="of each replica, or a fraction that several share, as 0.25 (default: 0, it computes on CPU)",
    ),
    Argument(
        "--tables", choices=("device", "host"),
        help="where tables of replicas with GPUs lie: on these, or in their host's memory (default: device)",
    ),
    Argument(
        "--shards", metavar="N",
        help="processes that share the tables of all replicas, or as 4x2 in two copies each "
        "(default: 0, each replica has them)",
    ),
)  # fmt: skip


def scale_said(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of a `Scale` that are said: replicas `3`, or from `1-8` as the load is; shards `4`, or `4x2` in copies.

    Raises:
        UserError: it says something else.
    """
    from rtrain.serving.scale import always

    said = dict[str, Any]()
    if options.replicas is not None:
        least, dash, most = options.replicas.partition("-")
        if not least.isdecimal() or not (most.isdecimal() if dash else True):
            raise UserError(f"--replicas: a number, or two as 1-8, got {options.replicas!r}")
        said = {"least": int(least), "most": int(most)} if dash else always(int(least))
    for name in ("ahead_s", "season_s", "gpus", "tables"):
        if (value := getattr(options, name)) is not None:
            said[name] = value
    if options.shards is not None:
        number, times, copies = options.shards.partition("x")
        if not number.isdecimal() or not (copies.isdecimal() if times else True):
            raise UserError(f"--shards: a number, or with copies of each as 4x2, got {options.shards!r}")
        said |= {"shards": int(number), "copies": int(copies) if times else 1}
    return said
