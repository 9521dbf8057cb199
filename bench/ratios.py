"""Ratios of pairs: their median, their spread, and whether a bound holds."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the median of a ratio is to be."""

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        return f">= {self.at_least:.2f}" if self.at_least is not None else f"<= {self.at_most:.2f}"

    def holds(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


@dataclass(frozen=True)
class Summary:
    """One comparison."""

    name: str
    median: float
    low: float
    high: float
    pairs: int
    bound: str
    holds: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(name: str, ratios: Sequence[float], bound: Bound) -> Summary:
    """Median and spread of the pairs' ratios."""
    median = statistics.median(ratios)
    return Summary(name, median, min(ratios), max(ratios), len(ratios), str(bound), bound.holds(median))


def table(rows: Sequence[Summary]) -> str:
    """The comparisons as aligned text."""
    lines = [f"{'rtrain / by hand':<18}{'median':>8}{'low':>8}{'high':>8}{'pairs':>7}   bound"]
    for r in rows:
        lines.append(
            f"{r.name:<18}{r.median:>8.3f}{r.low:>8.3f}{r.high:>8.3f}{r.pairs:>7}   "
            f"{r.bound} {'holds' if r.holds else 'MISSED'}"
        )
    return "\n".join(lines)
