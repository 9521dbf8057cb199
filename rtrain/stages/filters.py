"""What an operator's rules leave of a ranking: each filter gets the ranked items, best first, and gives back some."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rtrain.errors import ConfigError


@dataclass(frozen=True)
class Ranked:
    """An item with its score for who asks."""

    item: int | str
    score: float
    known: Mapping[str, Any]
    """What the store of features knows of it."""


@runtime_checkable  # a field of a config, whose values are looked at
class Filter(Protocol):
    """A rule: a frozen config. A class of your own may be one."""

    def keep(self, ranked: Sequence[Ranked], context: Mapping[str, Any]) -> Sequence[Ranked]:
        """Those that may be shown, in their order; `context`: what came with the request."""


def _check(of: Any) -> None:
    """Of a filter by a feature: what is no name, or no values, would let everything or nothing through.

    Raises:
        ConfigError: as it says.
    """
    name = type(of).__name__
    if not isinstance(of.feature, str) or not of.feature:
        raise ConfigError(f"{name}.feature: the name of one, got {of.feature!r}")
    values = getattr(of, "values", ())
    if not isinstance(values, tuple | list):
        raise ConfigError(f"{name}.values: a tuple of them, as ({values!r},), got {values!r}")


def _of(one: Ranked, feature: str) -> list[Any]:
    """Values that an item has, of a list each, as of genres; none: it is not known."""
    value = one.known.get(feature)
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return list(value)
    return [] if value is None else [value]


def _has(one: Ranked, feature: str, values: Sequence[Any]) -> bool:
    return any(value in values for value in _of(one, feature))


@dataclass(frozen=True, kw_only=True)
class Only:
    """Items whose feature has one of the values, of a list any; one of which it is not known is left out."""

    feature: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check(self)

    def keep(self, ranked: Sequence[Ranked], context: Mapping[str, Any]) -> Sequence[Ranked]:
        """See `Filter`."""
        return [one for one in ranked if _has(one, self.feature, self.values)]


@dataclass(frozen=True, kw_only=True)
class Without:
    """No item whose feature has one of the values, of a list any; one of which it is not known may be shown."""

    feature: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check(self)

    def keep(self, ranked: Sequence[Ranked], context: Mapping[str, Any]) -> Sequence[Ranked]:
        """See `Filter`."""
        return [one for one in ranked if not _has(one, self.feature, self.values)]


@dataclass(frozen=True, kw_only=True)
class AtMost:
    """The best so many items of each value of a feature, as of one seller; those of which it is not known are one.

    An item with a list, as of genres, is one of each of its values, and shown where all of them have room.
    """

    feature: str
    items: int

    def __post_init__(self) -> None:
        _check(self)
        if type(self.items) is not int or self.items < 1:
            raise ConfigError(f"AtMost.items: must be a whole number of at least 1, got {self.items!r}")

    def keep(self, ranked: Sequence[Ranked], context: Mapping[str, Any]) -> Sequence[Ranked]:
        """See `Filter`."""
        count, kept = Counter[str](), list[Ranked]()
        for one in ranked:
            values = {repr(value) for value in _of(one, self.feature) or [None]}
            if all(count[value] < self.items for value in values):
                count.update(values)
                kept.append(one)
        return kept
