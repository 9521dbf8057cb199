"""A config's fields on the command line: how each is written, what it means, and reading them back."""

import ast
import dataclasses
import inspect
import json
import shutil
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rtrain.config import is_config, only_python
from rtrain.errors import ConfigError, did_you_mean

TRUE, FALSE = "true", "false"


@dataclass(frozen=True)
class Field:
    """One leaf of a config."""

    key: str
    """Dotted, such as `optim.lr`."""
    hint: Any
    """Its declared type."""
    value: Any
    doc: str
    """The docstring under it in its class."""
    group: str
    """Dotted key of the config that has it, empty for the whole, and its class."""
    about: str
    """First line of that class's docstring."""


def fields(config: Any, where: str = "") -> Iterator[Field]:
    """Every leaf, in order; the items of a tuple of configs too, as `metrics.2.k`."""
    cls: Any = type(config)
    hints, docs = get_type_hints(cls), _docs(cls)
    about = (inspect.getdoc(cls) or "").split("\n")[0]
    children: list[tuple[str, Any]] = []
    for name in (field.name for field in dataclasses.fields(cls) if field.init):
        value, key = getattr(config, name), f"{where}{name}"
        if is_config(value):
            children.append((key, value))
        elif isinstance(value, tuple) and any(is_config(item) for item in value):
            children += [(f"{key}.{n}", item) for n, item in enumerate(value)]
        else:
            group = f"{where.removesuffix('.')}: {cls.__name__}" if where else cls.__name__
            yield Field(key, hints[name], value, docs.get(name, ""), group, about)
    for key, child in children:
        yield from fields(child, f"{key}.")


@cache
def _docs(cls: type) -> dict[str, str]:
    """Field -> the string that stands under it in the class's source; none where there is no source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue  # made in a console, or by a tool
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def changes(words: list[str], config: Any) -> dict[str, object]:
    """`--dotted.key value` pairs as a dict; how a value is written goes by the field's type.

    `--key=value` and `--key value` for all; a list also as several words; a switch also as `--key` and `--no_key`.

    Raises:
        ConfigError: a word that belongs to no field, or a field without its value.
    """
    known = {field.key: field.hint for field in fields(config)}
    words, found, key = list(words), dict[str, object](), ""
    while words:
        word, before = words.pop(0), key
        key, equals, value = word.partition("=")
        if not key.startswith("--"):
            if known.get(before) is bool:
                raise ConfigError(f"{before}: expected {TRUE} or {FALSE}, got {word!r}")
            raise ConfigError(f"command line: {word!r} is neither an option nor the value of one")
        key = key[2:].replace("-", "_")
        if not equals:
            key, value = _value(key, words, known)
        found[key] = value
    return found


def _value(key: str, words: list[str], known: dict[str, Any]) -> tuple[str, str]:
    """The value that follows a key; takes its words away."""
    parent, _, name = key.rpartition(".")
    positive = f"{parent}.{name.removeprefix('no_')}".lstrip(".")
    for switched in (positive, key.removeprefix("no_")):
        if key not in known and known.get(switched) is bool:
            return switched, FALSE
    following = next((n for n, word in enumerate(words) if word.startswith("--")), len(words))
    hint = known.get(key)
    if hint is bool and (not following or words[0].lower() not in (TRUE, FALSE, "0", "1", "yes", "no")):
        return key, TRUE
    if not following:
        parts = [name for name in known if name.startswith(f"{key}.")]
        if parts:
            raise ConfigError(f"{key}: its fields are set one by one, such as --{parts[0]} VALUE")
        near = "" if key in known else did_you_mean(f"--{key}", OWN_FLAGS)
        raise ConfigError(f"{key}: no value given{near or f'; write --{key} VALUE'}")
    take = following if any(get_origin(option) is tuple for option in _options(hint)) else 1
    taken = [words.pop(0) for _ in range(take)]
    return key, taken[0] if take == 1 else ",".join(word.strip(",") for word in taken)


OWN_FLAGS = [
    "--json", "--debug", "--fresh", "--launcher", "--trials", "--replicas", "--layouts", "--ranks", "--failures",
    "--draw", "--help",
]  # fmt: skip
"""Options that are no field, for guesses."""


def help_text(config: Any) -> str:
    """All fields with their values and meanings, a block a config, as wide as the terminal."""
    width = max(60, shutil.get_terminal_size().columns)
    lines, group = list[str](), ""
    for field in fields(config):
        if field.group != group:
            group = field.group
            lines += ["", f"{group} - {field.about}" if field.about else group]
        settable = not only_python(field.hint)
        head = f"  --{field.key} {metavar(field.hint)}" if settable else f"  {field.key} (in the recipe alone)"
        text = f"{field.doc} (default: {_shown(field.value)})".strip()
        if len(head) <= 38:
            lines += textwrap.wrap(text, width, initial_indent=f"{head:<40}", subsequent_indent=" " * 40)
        else:
            lines += [head, *textwrap.wrap(text, width, initial_indent=" " * 40, subsequent_indent=" " * 40)]
    return "\n".join(lines[1:])


def metavar(hint: Any) -> str:
    """How a value is written: `FLOAT`, `zero|ddp`, `INT,INT,...`, `INT|none`."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            one = metavar(inner[0])
            return f"{one},{one},..."
        return ",".join(map(metavar, inner))
    options = _options(hint)
    if len(options) > 1:
        return "|".join(dict.fromkeys(metavar(option) for option in options))
    if hint is type(None):
        return "none"
    if hint is bool:
        return "true|false"
    return getattr(hint, "__name__", str(hint)).upper()


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _shown(value: Any) -> str:
    """As it would be written on the command line."""
    if isinstance(value, tuple) and len(value) > 6:
        return f"{', '.join(map(_shown, value[:3]))}, ... {len(value)} of them"
    if isinstance(value, tuple):
        return ",".join(map(_shown, value)) or "()"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
