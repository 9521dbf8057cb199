"""What a command line says of a language model's answers: `serve` and `release`."""

import argparse
from typing import Any

from rtrain.cli.verb import Argument


def decoding_of(options: argparse.Namespace) -> Any:
    """A `Decoding`; none where nothing is said of it.

    Raises:
        ConfigError: a value that does not fit, or a guard that is none.
    """
    from rtrain import config
    from rtrain.errors import ConfigError
    from rtrain.language.decoding import Decoding
    from rtrain.language.guard import Guard

    given = {name: getattr(options, name) for name in ("lanes", "guesses", "draft") if getattr(options, name)}
    if options.guard:
        guard = config.from_dict({"$type": options.guard})
        if not isinstance(guard, Guard):
            raise ConfigError(f"--guard: {options.guard} is no rtrain.Guard")
        given["guard"] = guard
    return Decoding(**given) if given else None


DECODING = (
    Argument("--lanes", type=int, default=0, metavar="N", help="answers that are computed at once (default: 8)"),
    Argument(
        "--guesses", type=int, default=0, metavar="N",
        help="tokens of a greedy answer that are guessed at once and checked in one pass (default: none)",
    ),
    Argument(
        "--draft", default="", metavar="RUN",
        help="of a smaller model of the same tokenizer, that guesses (default: what the text repeats)",
    ),
    Argument(
        "--guard", default="", metavar="MODULE:CLASS",
        help="an rtrain.Guard that sees what is asked and answered; with --module MODULE (default: none)",
    ),
)  # fmt: skip
"""Of a language model alone."""
