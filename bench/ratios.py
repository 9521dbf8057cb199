"""Ratios of pairs: their median, their spread, and whether a bound holds."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure of two sides, and what the median of ours / theirs is to be: at most one of the two bounds."""

    name: str
    measure: str
    against: str
    at_least: float | None = None
    at_most: float | None = None
    of: str | None = None
    """Key of what the sides measured; none: the comparison's own name."""

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:.2f}"
        return f"<= {self.at_most:.2f}" if self.at_most is not None else "none"

    def holds(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A comparison that was made."""

    name: str
    measure: str
    against: str
    median: float
    low: float
    high: float
    pairs: int
    bound: str
    holds: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(comparison: Comparison, ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """Median and spread of the pairs' ratios ours / theirs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median(ratios)
    return Summary(
        name=comparison.name,
        measure=comparison.measure,
        against=comparison.against,
        median=median,
        low=min(ratios),
        high=max(ratios),
        pairs=len(ratios),
        bound=comparison.bound,
        holds=comparison.holds(median),
    )


def table(rows: Sequence[Summary]) -> str:
    """The comparisons as aligned text."""
    cells = [("", "measure", "rtrain /", "median", "min", "max", "pairs", "bound", "")]
    for r in rows:
        ratios = (f"{r.median:.3f}", f"{r.low:.3f}", f"{r.high:.3f}")
        verdict = "" if r.bound == "none" else "holds" if r.holds else "MISSED"
        cells.append((r.name, r.measure, r.against, *ratios, str(r.pairs), r.bound, verdict))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    words = {0, 1, 2, 8}
    return "\n".join(
        "  ".join(c.ljust(w) if i in words else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        .rstrip()
        for row in cells
    )  # fmt: skip
