"""What a command line says of two stages: `serve --ranker`, `release --retriever` and `--ranker`."""

import argparse
from typing import Any

from rtrain.cli.verb import Argument


def stages_of(options: argparse.Namespace, retriever: str, ranker: str) -> Any:
    """A `TwoStages`, of which one may still lack."""
    from rtrain.stages.config import TwoStages
    from rtrain.stages.features import features_at

    return TwoStages(
        retriever=retriever, ranker=ranker, candidates=options.candidates, user=options.user, item=options.item,
        history=options.history, features=features_at(options.features), timeout_ms=options.timeout_ms,
    )  # fmt: skip


STAGES = (
    Argument("--candidates", type=int, default=200, help="items that it orders for each (default: 200)"),
    Argument("--user", default="user", help="its feature that is who asks (default: user)"),
    Argument("--item", default="item", help="its feature that is what is offered (default: item)"),
    Argument("--history", default="", help="its feature that is the items that were had (default: none)"),
    Argument(
        "--features",
        default="",
        metavar="WHERE",
        help="what is known of users and items: a file of rtrain.SQLite, redis://HOST:PORT/N, or a folder with "
        "users.parquet and items.parquet (default: nothing)",
    ),
    Argument("--timeout-ms", type=float, default=50.0, help="that features may take (default: 50)"),
)
"""Of the ranking model."""
