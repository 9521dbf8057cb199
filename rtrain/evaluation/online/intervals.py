"""95 % intervals of rates from sums over sessions: Wilson's of shares of sessions, the delta method's of ratios."""

import math
from dataclasses import dataclass

Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Moments:
    """Sums over independent units (sessions) of a numerator y and a denominator x, whole numbers, so exact."""

    units: int
    y: int
    x: int
    yy: int
    xy: int
    xx: int

    @property
    def value(self) -> float | None:
        """sum(y) / sum(x); none where there is nothing to divide by."""
        return self.y / self.x if self.x else None


def wilson(of: Moments) -> Interval | None:
    """Of a share: `of.y` of `of.x` independent units (Wilson, 1927); none of no unit."""
    if not of.x:
        return None
    share, n = of.y / of.x, of.x
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def delta(of: Moments) -> Interval | None:
    """Of a ratio of sums over units, whose events depend on one another within a unit (Deng et al., KDD 2018).

    With r = sum(y) / sum(x), the variance is n / (n - 1) * sum((y - r x)^2) / sum(x)^2; it is cut at 0. None where
    the units say nothing of the variance: fewer than two, or all of one ratio.
    """
    if not of.x or of.units < 2:
        return None
    # In whole numbers up to the division: the terms are large and nearly cancel.
    squares = of.yy * of.x**2 - 2 * of.y * of.x * of.xy + of.y**2 * of.xx
    if squares <= 0:
        return None
    half = Z * math.sqrt(of.units / (of.units - 1) * (squares / of.x**4))
    value = of.y / of.x
    return max(value - half, 0.0), value + half


def difference(mine: tuple[float, Interval], theirs: tuple[float, Interval]) -> Interval:
    """Of the difference of two rates of independent units, from each one's value and interval.

    Each end has the distance that both rates' own ends say together (Newcombe, 1998; Zou and Donner, 2008): it keeps
    what is lopsided in them, as of rates near 0.
    """
    (a, (a_low, a_high)), (b, (b_low, b_high)) = mine, theirs
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
