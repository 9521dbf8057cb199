"""What a command line says of a language model's answers: `serve`, also of a recipe, and `release`."""

import argparse
import json
import re
from typing import Any

from rtrain.cli.own import own_module
from rtrain.cli.verb import NOTHING, Argument, under
from rtrain.errors import UserError

DECODING = under(
    "answers of a language model",
    Argument(
        "--engine", choices=("rtrain", "vllm"),
        help="what computes a language model's answers: rtrain's own by transformers (default), or vLLM by "
        "ray.serve.llm, for GPUs (rtrain[vllm])",
    ),
    Argument(
        "--engine-args", metavar="NAME=VALUE,...",
        help="of vLLM, by its own names, as max_model_len=4096,enforce_eager=true; none takes back",
    ),
    Argument("--lanes", type=int, metavar="N", help="answers that are computed at once (default: 8; vLLM: its own)"),
    Argument(
        "--guesses", type=int, metavar="N",
        help="tokens of a greedy answer that are guessed at once and checked in one pass (default: 0, none)",
    ),
    Argument(
        "--draft", metavar="RUN",
        help="of a smaller model of the same tokenizer, that guesses (default: none, what the text repeats)",
    ),
    Argument(
        "--guard", metavar="MODULE:CLASS",
        help="an rtrain.Guard of a module of yours, that sees what is asked and answered (default: none)",
    ),
)  # fmt: skip
"""Of a language model alone."""
JSON = json.JSONDecoder()


def decoding_said(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of a `Decoding` that are said; `none` says that there is no draft, or no guard.

    Raises:
        UserError: a guard that is none.
    """
    said = {name: value for name in ("engine", "lanes", "guesses") if (value := getattr(options, name)) is not None}
    if options.engine == "rtrain":  # those of what computed before are nothing to it
        said["engine_args"] = ()
    if options.engine_args is not None:
        said["engine_args"] = () if options.engine_args == NOTHING else _split(options.engine_args)
    if options.draft is not None:
        said["draft"] = "" if options.draft == NOTHING else options.draft
    if options.guard is not None:
        said["guard"] = None if options.guard == NOTHING else _guard(options.guard)
    return said


def _split(text: str) -> tuple[str, ...]:
    """At commas, but not within a value that is JSON."""
    parts = []
    while text:
        name, equals, value = text.partition("=")
        try:
            end = JSON.raw_decode(value)[1]
        except ValueError:
            end = 0  # a word, or a list of them, up to the next name
        if value[end : end + 1] not in ("", ","):
            end = 0
        end += len(re.split(r",(?=[\w-]+=)", value[end:], maxsplit=1)[0])
        parts.append(name + equals + value[:end])
        text = value[end + 1 :]
    return tuple(parts)


def _guard(text: str) -> Any:
    from rtrain.language.guard import Guard

    module, _, name = text.partition(":")
    if not (module and name):
        raise UserError(f"--guard: MODULE:CLASS, or none, got {text!r}")
    found = getattr(own_module(module, "--guard"), name, None)
    if not (isinstance(found, type) and issubclass(found, Guard)):
        raise UserError(f"--guard: {text} is no class of an rtrain.Guard")
    try:
        return found()
    except TypeError as error:
        raise UserError(f"--guard {text}: {error}. Give it in Python: rtrain.Decoding(guard={name}(...))") from None
