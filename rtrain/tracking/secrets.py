"""Keeps passwords, tokens and keys of a config out of what is shown or sent away."""

import re
import shlex
from collections.abc import Mapping

from rtrain.tracking.uris import MASK, mask_text, mask_uris

# Anywhere in a name these mean a secret; a key or token does only as the last word, so that
# `hf_token` is masked and `token_column` or `key_dim` is not.
ALWAYS = {"password", "passwd", "passphrase", "secret", "credential", "apikey"}
LAST = {"key", "token", "auth"}


def mask(config: Mapping[str, object]) -> dict[str, object]:
    """A flat config with the values of secret-looking keys, and secrets inside URIs, replaced by `***`."""
    return {key: MASK if _is_secret(key, value) else _inside(value) for key, value in config.items()}


def mask_command(command: str) -> str:
    """A shell command with the values of its secret-looking options replaced."""
    try:
        words = shlex.split(command)
    except ValueError:
        return mask_text(command)
    masked, hide_next = [], False
    for word in words:
        name, is_assignment, value = word.partition("=")
        if hide_next and not word.startswith("--"):
            word = MASK
        elif word.startswith("--") and is_assignment and _is_secret(name.lstrip("-"), value):
            word = f"{name}={MASK}"
        else:
            word = mask_uris(word)
        hide_next = name.startswith("--") and not is_assignment and _is_secret(name.lstrip("-"), "given")
        masked.append(word)
    return command if masked == words else shlex.join(masked)


def _is_secret(key: str, value: object) -> bool:
    if value is None or value == "" or value == [] or isinstance(value, bool):
        return False
    parts = [[w.lower().removesuffix("s") for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", p)] for p in key.split(".")]
    words = {w for part in parts for w in part}
    ends = next((part[-1] for part in reversed(parts) if part), "")
    # A number under such a name is a count (`max_tokens`), not a secret.
    return bool(words & ALWAYS) or (ends in LAST and not isinstance(value, int | float))


def _inside(value: object) -> object:
    if isinstance(value, str):
        return mask_uris(value)
    if isinstance(value, list | tuple):
        return [_inside(v) for v in value]
    if isinstance(value, Mapping):
        return mask({mask_uris(str(k)): v for k, v in value.items()})
    return value
