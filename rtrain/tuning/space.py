"""What a search may change: dotted config fields, each with the values that it may take, and when it counts at all."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from rtrain import config
from rtrain.errors import ConfigError, did_you_mean
from rtrain.run import Run

Space = Mapping[str, "Domain"]
"""Dotted key of the run's config -> domain."""
Drawn = Mapping[str, float]
"""Key -> what was drawn: a number, or of a choice the position of the value; of fields that count alone."""


@dataclass(frozen=True)
class Domain:
    """Values that a field may take in a search."""

    kind: Literal["loguniform", "uniform", "integers", "choice"]
    values: tuple[Any, ...]
    given: tuple[str, tuple[Any, ...]] | None = None
    """Another key of the space, and the values of it with which this field counts."""

    def when(self, key: str, *values: Any) -> "Domain":
        """This domain, counting only where `key`, a choice of the same space, takes one of `values`.

        Elsewhere the field stays as the recipe has it.
        """
        if not values:
            raise ConfigError(f"when({key!r}): needs at least one value of {key}")
        return replace(self, given=(key, values))

    def value(self, drawn: float) -> Any:
        """What the field is set to."""
        if self.kind == "choice":
            return self.values[int(drawn)]
        return int(drawn) if self.kind == "integers" else float(drawn)

    @property
    def positions(self) -> range:
        """Of a choice or of integers: all that can be drawn.

        Raises:
            ConfigError: of a continuous domain.
        """
        if self.kind == "choice":
            return range(len(self.values))
        if self.kind == "integers":
            return range(self.values[0], self.values[1] + 1)
        raise ConfigError(f"a grid needs values that can be counted, got {self}. Use choice(...) or integers(...)")

    def __str__(self) -> str:
        spelled = f"{self.kind}({', '.join(map(repr, self.values))})"
        return f"{spelled} when {self.given[0]} in {self.given[1]}" if self.given else spelled


def loguniform(low: float, high: float) -> Domain:
    """Uniform in the logarithm between `low` and `high`."""
    if not 0 < low < high < math.inf:
        raise ConfigError(f"loguniform({low}, {high}): needs 0 < low < high")
    return Domain("loguniform", (low, high))


def uniform(low: float, high: float) -> Domain:
    """Uniform between `low` and `high`."""
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"uniform({low}, {high}): needs low < high")
    return Domain("uniform", (low, high))


def integers(low: int, high: int) -> Domain:
    """A whole number from `low` to `high`, both included."""
    if not (isinstance(low, int) and isinstance(high, int) and low < high):
        raise ConfigError(f"integers({low}, {high}): needs whole numbers, low < high")
    return Domain("integers", (low, high))


def choice(*values: Any) -> Domain:
    """One of `values`; each may be whatever the field takes, a part of a model's architecture too."""
    if not values:
        raise ConfigError("choice(): needs at least one value")
    return Domain("choice", values)


class Suggests(Protocol):
    """An Optuna trial, as far as a draw needs one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between both."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number, both ends included."""

    def suggest_categorical(self, name: str, choices: tuple[int, ...]) -> int:
        """One of them."""


def ordered(space: Space) -> list[tuple[str, Domain]]:
    """The space's fields, each behind the one that it depends on."""
    found: dict[str, Domain] = {}
    left = dict(space)
    while left:
        ready = [k for k, d in left.items() if d.given is None or d.given[0] in found]
        if not ready:
            raise ConfigError(f"space: {', '.join(left)}: each counts only when another of them does")
        found |= {key: left.pop(key) for key in ready}
    return list(found.items())


def counts(domain: Domain, drawn: Drawn, space: Space) -> bool:
    """Whether a field counts beside what has been drawn for those before it."""
    if domain.given is None:
        return True
    key, values = domain.given
    return key in drawn and space[key].value(drawn[key]) in values


def draw(space: Space, trial: Suggests) -> dict[str, float]:
    """What a sampler proposes, asked field by field."""
    drawn: dict[str, float] = {}
    for key, domain in ordered(space):
        if not counts(domain, drawn, space):
            continue
        match domain.kind:
            case "choice":
                drawn[key] = trial.suggest_categorical(key, tuple(domain.positions))
            case "integers":
                drawn[key] = trial.suggest_int(key, *domain.values)
            case _:
                drawn[key] = trial.suggest_float(key, *domain.values, log=domain.kind == "loguniform")
    return drawn


def grid(space: Space) -> Iterator[dict[str, float]]:
    """Every combination once, the last field changing fastest.

    Raises:
        ConfigError: a field with values that cannot be counted.
    """
    fields = ordered(space)
    for key, domain in fields:
        try:
            _ = domain.positions
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    seen = set[tuple[tuple[str, float], ...]]()
    for combination in _combinations([domain.positions for _, domain in fields]):
        drawn: dict[str, float] = {}
        for (key, domain), position in zip(fields, combination, strict=True):
            if counts(domain, drawn, space):
                drawn[key] = position
        if (what := tuple(drawn.items())) not in seen:
            seen.add(what)
            yield drawn


def _combinations(positions: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """As `itertools.product`, which would hold every range as a tuple before it gives the first."""
    if not positions:
        yield ()
        return
    for before in _combinations(positions[:-1]):
        yield from ((*before, position) for position in positions[-1])


def changes(space: Space, drawn: Drawn) -> dict[str, Any]:
    """Dotted key -> value to override the recipe's by."""
    return {key: space[key].value(value) for key, value in drawn.items()}


def storable(value: Any) -> Any:
    """A field's value as JSON keeps it: what is no number, text or truth value by its Python expression."""
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


SET_BY_SEARCH = ("name", "storage", "checkpoint.every", "checkpoint.background", "handoff", "tracking")
"""Fields that are a trial's own, or that no trial has any use for."""


def check_space(run: Run, space: Space) -> None:
    """Refuse a space that the run cannot take, before anything starts.

    Raises:
        ConfigError: an empty space, a key that the run does not have, a value that its field does not take, a
            condition on what is not in the space.
    """
    if not space:
        raise ConfigError("tune: the recipe gives no search space. Pass main(..., space={'optim.lr': loguniform(...)})")
    for key, domain in space.items():
        if key.startswith(SET_BY_SEARCH):
            raise ConfigError(f"space: {key} is what the search sets for each trial. Leave it out")
        if domain.given is None:
            continue
        on, values = domain.given
        if on not in space:
            raise ConfigError(
                f"space: {key} counts when {on} is {values}, but {on} is not in it{did_you_mean(on, space)}"
            )
        if space[on].kind != "choice":
            raise ConfigError(f"space: {key} counts when {on} is {values}, but {on} is no choice(...)")
        if unknown := [v for v in values if v not in space[on].values]:
            raise ConfigError(f"space: {key} counts when {on} is {unknown[0]!r}, which is not among {space[on].values}")
    for key, domain in ordered(space):
        base, above = run, list[tuple[str, Any]]()
        while domain.given:  # the field may be of what the one that it depends on is set to
            on, values = domain.given
            above.append((on, values[0]))
            domain = space[on]
        for on, value in reversed(above):
            base = config.override(base, {on: value})
        for value in space[key].values:
            config.override(base, {key: value})
