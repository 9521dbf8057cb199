"""A column of numbers in bins that hold about as many rows each; the edges are the column's alone.

Shape legend: V different values, E edges.
"""

from decimal import ROUND_CEILING, Context

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.coded import Coded

MOST_BINS = 5
"""Of a column of numbers."""
MOST_WHOLE = 20
"""Different whole numbers up to which each is told apart, as words are."""
MISSING = "(null)"

Bin = tuple[str, NDArray[np.int64]]
"""What a bin says, such as `12.5<price<=30`, and the codes of the values in it."""


def is_binned(coded: Coded) -> bool:
    """Whether the column is numbers, more different ones than are told apart."""
    if not coded.counted:
        return False
    whole = pa.types.is_integer(coded.values.type)
    return len(np.unique(_numbers(coded)[_there(coded)])) > (MOST_WHOLE if whole else MOST_BINS)


def bins_of(column: str, coded: Coded) -> list[Bin]:
    """The column's bins, rising, but for those that would be empty; behind them what has no number (null or nan).

    An edge is the shortest decimal that parts the rows as their quantile does.
    """
    values, there = _numbers(coded), _there(coded)
    edges, texts = _edges(values[there], coded.counts[there], whole=pa.types.is_integer(coded.values.type))
    place = np.searchsorted(edges, values, side="left")
    found: list[Bin] = []
    for number in range(len(edges) + 1):
        above = f"{texts[number - 1]}<" if number else ""
        name = f"{above}{column}<={texts[number]}" if number < len(edges) else f"{column}>{texts[-1]}"
        found.append((name, np.flatnonzero(there & (place == number))))
    if not there.all():
        found.append((f"{column}={MISSING}", np.flatnonzero(~there)))
    return found


def _numbers(coded: Coded) -> NDArray[np.float64]:
    """float64 [V], nan where there is none; whole numbers beyond 2**53 lose their last digits."""
    values: NDArray[np.float64] = coded.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _there(coded: Coded) -> NDArray[np.bool_]:
    return ~np.isnan(_numbers(coded))


def _edges(values: NDArray[np.float64], counts: NDArray[np.int64], *, whole: bool) -> tuple[list[float], list[str]]:
    """Rising, each the most that its bin holds, [E], and how they are written; below the highest value."""
    every, of = np.unique(values, return_inverse=True)  # 0 and -0 are one
    upto = np.cumsum(np.bincount(of, weights=counts))
    wanted = upto[-1] * np.arange(1, MOST_BINS) / MOST_BINS
    places = np.unique(np.searchsorted(upto, wanted, side="left"))
    places = places[places < len(every) - 1]
    edges = [float(every[at]) if whole else _shortest(float(every[at]), float(every[at + 1])) for at in places]
    return edges, [f"{edge:.0f}" if whole else repr(edge).removesuffix(".0") for edge in edges]


def _shortest(low: float, high: float) -> float:
    """A number of [low, high) of as few digits as there is."""
    rounded = (Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float(low) for digits in range(1, 17))
    return next((float(number) for number in rounded if low <= float(number) < high), low)
