"""Keeps passwords, tokens and keys of a config out of what is shown or sent away."""

import re
import shlex
from collections.abc import Mapping
from hashlib import sha256

from rtrain.uris import MASK, mask_text, mask_uris

# Anywhere in a name these mean a secret; a key or token does only as the last word, so that
# `hf_token` is masked and `token_column` or `key_dim` is not.
ALWAYS = {"password", "passwd", "passphrase", "secret", "credential", "apikey"}
LAST = {"key", "token", "auth"}
CODE = (".py", ".pyi", ".ipynb", ".c", ".cc", ".cpp", ".cu", ".h", ".js", ".ts", ".go", ".rs", ".java", ".md", ".rst")
LONGEST = 10_000
"""Characters of a line that is looked into; of a longer one, as a notebook's pictures are, only the length stays."""
QUOTED = re.compile(r"""((["']?)(?<![\w.-])([\w.-]{1,80})\2\]?\s*[:=]\s*)(["'])(.+?)\4""")
NAMED = re.compile(r"^([+\- ]?\s*(?:export\s+)?)([A-Z][A-Z0-9_]*)=([^\s\"'].*)$", re.MULTILINE)
BARE = re.compile(r"^([+\- ]?\s*(?:export\s+)?)([\w.-]+)\s*[:=]\s*([^\s\"'].*)$", re.MULTILINE)


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


def mask_lines(text: str) -> str:
    """A diff or a file's text with its secrets replaced: in URIs, and as values of names that look like secrets.

    A quoted value counts everywhere (`TOKEN = "..."`, `"password": "..."`); a bare one in files that are no code
    (`.env`, YAML), and of a NAME=value without spaces, since in code it is another name.
    """
    masked, code = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith(("--- ", "+++ ")) and "/dev/null" not in line:
            code = line.rstrip().endswith(CODE)
        if len(line) > LONGEST:
            line = f"{line[0]}# a line of {len(line)} characters, sha256 {sha256(line.encode()).hexdigest()}\n"
        line = QUOTED.sub(lambda found: _hidden(found, 3, 5), line)
        line = (NAMED if code else BARE).sub(lambda found: _hidden(found, 2, 3), line)
        masked.append(mask_text(line))
    return "".join(masked)


def _hidden(found: re.Match[str], name: int, value: int) -> str:
    """The match, with its group `value` replaced where its group `name` names a secret."""
    if not _is_secret(found[name], _number(found[value])):
        return found[0]
    start, stop = (at - found.start() for at in found.span(value))
    return f"{found[0][:start]}{MASK}{found[0][stop:]}"


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


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
