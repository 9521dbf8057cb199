"""Aggregates as the command line has them: `count(user_id, 7d)`, `mean(user_id, label, within=7d, prior=0.1)`."""

import csv
import re
from dataclasses import MISSING, Field, fields
from typing import Any

from rtrain.data.prepare.aggregates import KINDS, Aggregate
from rtrain.errors import ConfigError, did_you_mean

NUMBERS = ("prior", "prior_rows")
"""Arguments that are numbers; the others are texts."""


def parse(text: str) -> Aggregate:
    """The aggregate that is spelled so; arguments in the order of its fields, or by their names.

    Raises:
        ConfigError: it cannot be read.
    """
    where = f"--aggregate {text!r}"
    found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
    if not found:
        raise ConfigError(f"{where}: it must be a kind and its arguments, such as 'count(user_id, 7d)'")
    kind = KINDS.get(found[1])
    if kind is None:
        near = did_you_mean(found[1], KINDS) or f". The kinds are {', '.join(KINDS)}"
        raise ConfigError(f"{where}: there is no aggregate {found[1]!r}{near}")
    takes = {field.name: field for field in fields(kind)}
    try:
        words = next(csv.reader([found[2]], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ConfigError(f"{where}: its arguments are no list between commas ({error})") from None
    given: dict[str, str] = {}
    for place, word in enumerate(words):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals and place < len(takes):
            name, value = list(takes)[place], name
        if name not in takes:
            near = did_you_mean(name, takes) or f". It takes {usage(found[1])}"
            raise ConfigError(f"{where}: {found[1]} takes no {word.strip()!r}{near}")
        if name in given:
            raise ConfigError(f"{where}: {name} is given twice")
        if not value:
            raise ConfigError(f"{where}: {name} is empty. It takes {usage(found[1])}")
        given[name] = value
    missing = [name for name, field in takes.items() if _is_needed(field) and name not in given]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} is missing. It takes {usage(found[1])}")
    try:
        made: dict[str, Any] = {n: _number(n, value) if n in NUMBERS else value for n, value in given.items()}
        return kind(**made)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def usage(kind: str) -> str:
    """`count(by, [within])`."""
    return f"{kind}({', '.join(f.name if _is_needed(f) else f'[{f.name}]' for f in fields(KINDS[kind]))})"


def _is_needed(field: "Field[object]") -> bool:
    return field.default is MISSING


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{name} must be a number, got {value!r}") from None
