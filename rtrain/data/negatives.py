"""Items that a user did not have, drawn by the key (seed, epoch, sample): exact at any world size, after any resume.

Shape legend: B samples, T positions of a sample, K negatives of a position.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError
from rtrain.keyed import drawn, uniform
from rtrain.rounding import ceil_div

Ids = NDArray[np.int64]
ROUNDS = 64
"""Draws after which a negative stays what it is: only who had nearly all items gets there."""


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """How negatives are drawn; one's own way is a subclass, in any file, that says how likely each item is."""

    count: int = 1
    """For each positive."""
    by: Literal["uniform", "popularity", "all"] = "uniform"
    """uniform: every item is as likely; popularity: an item by how often it was had in training, to `power`; all: none
    is drawn, but the positions of each batch have a piece of the catalogue each, together every item once."""
    power: float = 1.0
    """Exponent of the popularity."""
    known: bool = False
    """Whether batches also tell which of their positives a user had in training, as those without drawn negatives
    always do: an objective that compares within the batch beside drawn negatives wants it."""

    def __post_init__(self) -> None:
        if self.by == "all" and self.count != 1:
            raise ConfigError(f"data.negatives.count: {self.count}, but by='all' offers every item. Leave it at 1")
        if self.count < 0:
            raise ConfigError(f"data.negatives.count: must be at least 0, got {self.count}")
        if not 0 <= self.power < math.inf:
            raise ConfigError(f"data.negatives.power: must be at least 0, got {self.power}")

    def shares(self, catalogue: Ids, often: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """How likely each item is beside the others, [C] at least 0; none: all are as likely.

        `catalogue`: int64 [C], rising; `often`: [C], how often each was had in training.
        """
        return often**self.power if self.by == "popularity" else None

    @property
    def tells_known(self) -> bool:
        """`known`, spelled out."""
        return self.known or self.count == 0


class Sampler:
    """Draws from a catalogue, leaving out what a user had in training."""

    def __init__(self, config: Negatives, catalogue: Ids, user: Ids, item: Ids):
        """`catalogue`: rising; `user` and `item`: the interactions of training."""
        self.config, self.count, self.catalogue = config, config.count, catalogue
        self._span = int(catalogue[-1]) + 1
        self._had = np.unique(user * self._span + item)
        often = np.bincount(np.searchsorted(catalogue, item), minlength=len(catalogue)).astype(np.float64)
        shares = config.shares(catalogue, often)
        self._upto: NDArray[np.float64] | None = None
        if shares is not None:
            good = np.shape(shares) == often.shape and (shares >= 0).all() and 0 < np.sum(shares) < math.inf
            if not good:
                raise ConfigError(
                    f"data.negatives: {type(config).__name__}.shares gave {np.shape(shares)} numbers for "
                    f"{len(catalogue)} items. Give one an item, at least 0, of a finite sum above 0"
                )
            self._upto = np.cumsum(shares)

    def draw(self, key: tuple[int, int], sample: Ids, position: Ids, user: Ids) -> Ids:
        """int64 [n, K]: for n positions, each of a sample and with its place in it, of a user."""
        number = position[:, None] * self.count + np.arange(self.count)
        found = self._pick(key, sample[:, None], number, 0)
        for again in range(1, ROUNDS):
            wrong = np.flatnonzero(self._known(user[:, None], found))
            if not len(wrong):
                break
            row = wrong // self.count
            found.flat[wrong] = self._pick(key, sample[row], number.flat[wrong], again)
        return found

    def everything(self, place: Ids, positions: int) -> tuple[Ids, NDArray[np.bool_]]:
        """[n, K]: of so many `positions` of a batch those at `place` [n] have these items, and which are there.

        All together have each item of the catalogue once; what only fills is its first item.
        """
        count = ceil_div(len(self.catalogue), positions)
        at = place[:, None] * count + np.arange(count)
        there = at < len(self.catalogue)
        return self.catalogue.take(np.where(there, at, 0)), there

    def _pick(self, key: tuple[int, int], sample: Ids, number: Ids, again: int) -> Ids:
        bits = drawn(*key, sample, number, again)
        if self._upto is None:
            return self.catalogue.take((bits % np.uint64(len(self.catalogue))).astype(np.int64))
        at: Ids = np.searchsorted(self._upto, uniform(bits) * self._upto[-1], side="right")
        return self.catalogue.take(at)

    def _known(self, user: Ids, item: Ids) -> NDArray[np.bool_]:
        pair = user * self._span + item
        at = np.minimum(np.searchsorted(self._had, pair), len(self._had) - 1)
        known: NDArray[np.bool_] = self._had[at] == pair
        return known
