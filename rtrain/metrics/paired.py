"""How far apart two models are on the same rows, and how sure that is: the paired bootstrap.

Rows that belong together (a user's) are drawn together, with replacement, as many as there are (Efron & Tibshirani,
1993, ch. 8; of whole clusters Field & Welsh, 2007); both models are measured on each draw, so that what makes a draw
easy for both does not count. The interval lies between the quantiles of the differences.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Scored, Valued, Weighable

DRAWS, LEVEL = 1000, 0.95
UNDEFINED = 0.05
"""Share of draws in which a metric may have no value (one class only) before it has no interval."""


@dataclass(frozen=True)
class Interval:
    """Between which a difference lies, at `LEVEL`."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the two models differ."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    scored: Scored | Valued
    units: NDArray[np.int64]
    """int64 [n]: what is drawn together; the two sides have the same ones, though not in the same order"""


def paired_intervals(
    first: Side, second: Side, metrics: Mapping[str, Weighable], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval | None]:
    """Name -> interval of the second's metric minus the first's; none of one unit, or where it often has no value."""
    units, of_first = np.unique(first.units, return_inverse=True)
    of_second = np.searchsorted(units, second.units)
    sides = [(first.scored, of_first), (second.scored, of_second)]
    measures = [[metric.weighted(scored) for scored, _ in sides] for metric in metrics.values()]
    random = np.random.default_rng(seed)
    differences = np.full((len(measures), draws), np.nan)
    for draw in range(draws if len(units) > 1 else 0):
        often = np.bincount(random.integers(0, len(units), len(units)), minlength=len(units)).astype(np.float64)
        counts = [often[of] for _, of in sides]
        for number, (one, other) in enumerate(measures):
            differences[number, draw] = other(counts[1]) - one(counts[0])
    return {name: _between(values) for name, values in zip(metrics, differences, strict=True)}


def mean_interval(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda means: means,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The second's mean minus the first's, of numbers [n] of the same n >= 2 units; `of`: of each mean."""
    often_Dn = np.random.default_rng(seed).multinomial(len(first), np.full(len(first), 1 / len(first)), size=draws)
    means = [of(often_Dn @ numbers / len(numbers)) for numbers in (first, second)]
    low, high = np.quantile(means[1] - means[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _between(differences: NDArray[np.float64]) -> Interval | None:
    known = differences[np.isfinite(differences)]
    if len(known) < (1 - UNDEFINED) * len(differences):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
