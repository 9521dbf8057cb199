"""Numbers as tabular networks read them best: by bins, or by their rank.

Gorishniy, Rubachev & Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022.

Shape legend: N rows, T bins, D dense features, P columns that they become.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError, DataError

Floats = NDArray[np.float64]
LARGEST = float(np.finfo(np.float32).max)
_MOST = float(np.finfo(np.float64).max)


def finite(low: float, high: float) -> tuple[float, float]:
    """Ends that JSON can spell."""
    return max(-_MOST, low), min(_MOST, high)


@dataclass(frozen=True, kw_only=True)
class Binned:
    """Bins of a number; `PiecewiseLinear` and `Quantiles` say what becomes of them."""

    edges: tuple[float, ...]
    """Where bins begin and end, rising, in the units of the raw value: T + 1 for T bins. Take them from training rows
    alone, as `Interactions.encoded` does."""

    def __post_init__(self) -> None:
        where = f"{type(self).__name__}.edges"
        if len(self.edges) < 2:
            raise ConfigError(f"{where}: a bin has two, but there are {len(self.edges)}. Give two or more")
        for number, edge in enumerate(self.edges):
            if not math.isfinite(edge):
                raise ConfigError(f"{where}: edge {number} is {edge}; each must be a finite number")
        for number, (low, high) in enumerate(pairwise(self.edges), 1):
            if not low < high:
                raise ConfigError(f"{where}: edge {number} is {high}, after {low}; they must rise. Sort, drop repeats")

    @classmethod
    def of(cls, values: Floats, bins: int = 16) -> Self:
        """Edges of float64 [N] values by `cut`, of those that are finite.

        Raises:
            DataError: fewer than two different finite values.
        """
        known = values[np.isfinite(values)]
        edges = cls.cut(known, bins) if len(known) else known
        if len(edges) < 2:
            raise DataError(f"{cls.__name__}: edges need two different finite values, got {len(edges)}. Leave it out")
        return cls(edges=tuple(edges.tolist()))

    @staticmethod
    def cut(values: Floats, bins: int) -> Floats:
        """Quantiles of float64 [N] values, rising: bins of about as many rows, fewer where values repeat."""
        return np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))

    @property
    def bins(self) -> int:
        """T."""
        return len(self.edges) - 1

    @property
    def width(self) -> int:
        """Columns that the feature becomes."""
        return 1

    def scaled(self, raw: Floats) -> Floats:
        """The place of values [N] on an axis where edge t lies at t; it goes on below the first and beyond the last."""
        edges = np.asarray(self.edges)
        own = np.clip(np.searchsorted(edges, raw, side="right") - 1, 0, self.bins - 1)
        places: Floats = own + (raw - edges[own]) / np.diff(edges)[own]
        return places

    def reach(self, largest: float = LARGEST) -> tuple[float, float]:
        """The raw values whose place is not beyond `largest`."""
        lowest, highest = self.edges[1] - self.edges[0], self.edges[-1] - self.edges[-2]
        return finite(self.edges[0] - largest * lowest, self.edges[-2] + largest * highest)


@dataclass(frozen=True, kw_only=True)
class PiecewiseLinear(Binned):
    """A column a bin: 0 for values below it, 1 for those above, and linear within (the paper's PLE, formula 1).

    The first bin's column goes on below 0 for values below all edges, the last bin's beyond 1 for those above.
    """

    @staticmethod
    def cut(values: Floats, bins: int) -> Floats:
        """Quantiles, of which a value that fills more than a bin takes one: a column of zeros has bins for the rest."""
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) <= bins + 1:
            return distinct
        # The values of most rows have a bin each, and no other fills more than an even share of what is left.
        falling = np.sort(counts)[::-1]
        left = len(values) - np.concatenate([[0], np.cumsum(falling)])
        own = next(k for k in range(bins) if falling[k] * (bins - k) <= left[k])
        if own == 0:
            return Binned.cut(values, bins)
        filled = np.cumsum(np.minimum(counts, left[own] / (bins - own)))
        # Behind a value that fills its bin, whatever the sums' last digit, the next bin begins with the next value.
        ends = np.searchsorted(filled, np.linspace(0, filled[-1], bins + 1) * (1 + 1e-9), side="right")
        return np.unique(distinct[np.minimum(ends, len(distinct) - 1)])

    @property
    def width(self) -> int:
        """T."""
        return self.bins


@dataclass(frozen=True, kw_only=True)
class Quantiles(Binned):
    """One column: the share of training rows below the value, linear within a bin, moved to mean 0 and variance 1.

    That is exact for bins of equally many rows. Values beyond the edges count as the edge itself.
    """

    def scaled(self, raw: Floats) -> Floats:
        """Of values [N], numbers from -sqrt(3) to sqrt(3)."""
        places: Floats = (np.clip(super().scaled(raw), 0, self.bins) / self.bins - 0.5) * math.sqrt(12)
        return places

    def reach(self, largest: float = LARGEST) -> tuple[float, float]:
        """Every finite number, for none becomes large."""
        return finite(-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Log1p:
    """One column: log(1 + x), of counts; what is below 0 counts as 0 (Naumov et al., arXiv:1906.00091)."""

    @property
    def width(self) -> int:
        """One."""
        return 1

    def scaled(self, raw: Floats) -> Floats:
        """Of values [N]."""
        logs: Floats = np.log1p(np.maximum(raw, 0))
        return logs

    def reach(self, largest: float = LARGEST) -> tuple[float, float]:
        """Every finite number, for none becomes large."""
        return finite(-math.inf, math.inf)


Encoding = PiecewiseLinear | Quantiles | Log1p


@cache
def _columns(widths: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """Of each of P columns: its feature, its bin, and whether it is the feature's first and last."""
    of = np.repeat(np.arange(len(widths)), widths)
    bins = np.concatenate([np.arange(width) for width in widths])
    last = np.concatenate([np.arange(width) == width - 1 for width in widths])
    return of, bins, bins == 0, last


def widened(scaled_ND: NDArray[np.float32], widths: tuple[int, ...]) -> NDArray[np.float32]:
    """Each feature's columns side by side, float32 [N, P]; a feature of one column stays as it is."""
    if all(width == 1 for width in widths):
        return scaled_ND
    of, bins, first, last = _columns(widths)
    low, high = np.where(first, -np.inf, 0).astype(np.float32), np.where(last, np.inf, 1).astype(np.float32)
    out_NP = scaled_ND.take(of, axis=1)
    out_NP -= bins.astype(np.float32)
    return np.clip(out_NP, low, high, out=out_NP)
