"""What a command line says of two stages: `serve --ranker`, `gate` and `release`."""

import argparse
import json
from typing import Any

from rtrain.cli.verb import NOTHING, Argument, under
from rtrain.errors import UserError

STAGES = under(
    "two stages",
    Argument("--candidates", type=int, help="items that it orders for each (default: 200)"),
    Argument("--user", help="its feature that is who asks (default: user)"),
    Argument("--item", help="its feature that is what is offered (default: item)"),
    Argument("--history", help="its feature that is the items that were had, or none (default: none)"),
    Argument(
        "--features",
        metavar="WHERE",
        help="what is known of users and items: a file of rtrain.SQLite, redis://HOST:PORT/N, or a folder with "
        "users.parquet and items.parquet, or none (default: none)",
    ),
    Argument("--timeout-ms", type=float, help="that features may take (default: 50)"),
    Argument(
        "--defaults",
        metavar="JSON",
        help="""its columns where neither request nor features have them, as '{"hour": 12}' (default: none)""",
    ),
)
"""Of the ranking model."""


def stages_said(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of `TwoStages` that are said.

    Raises:
        UserError: both stages are, or there are no features where it says.
    """
    from rtrain.stages.features import features_at

    names = ("retriever", "ranker", "candidates", "user", "item", "history", "features", "timeout_ms", "defaults")
    said = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if "retriever" in said and "ranker" in said:
        raise UserError(
            f"{options.verb}: --retriever and --ranker are each the stage that RUN is not. Give one of them"
        )
    for name in {"history", "features"} & set(said):
        said[name] = "" if said[name] == NOTHING else said[name]
    if "defaults" in said:
        said["defaults"] = _defaults(said["defaults"], options.verb)
    if "features" in said:
        said["features"] = features_at(said["features"])
    return said


def stages_of(options: argparse.Namespace) -> Any:
    """A `TwoStages`, of which one may still lack; none: no stage is said.

    Raises:
        UserError: as `stages_said`; or what belongs to two stages is said, but none of them.
    """
    from rtrain import config
    from rtrain.stages.config import TwoStages

    said = stages_said(options)
    if said and not {"retriever", "ranker"} & set(said):
        stages = "--retriever or --ranker" if hasattr(options, "retriever") else "--ranker"
        option = f"--{next(iter(said)).replace('_', '-')}"
        raise UserError(f"{options.verb}: {option} is of two stages. Give {stages} too, or leave it out")
    return config.override(TwoStages(), said) if said else None


def _defaults(text: str, verb: str) -> dict[str, Any]:
    """
    Raises:
        UserError: it is no JSON object.
    """
    try:
        found = json.loads(text)
        why = "it is no object"
    except ValueError as error:
        found, why = None, str(error)
    if not isinstance(found, dict):
        example = json.dumps({"hour": 12})
        raise UserError(f"{verb}: --defaults {text!r}: {why}. Give columns with values as JSON, as '{example}'")
    return found
