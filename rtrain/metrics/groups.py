"""Rows group after group, each group's in the order of its scores: sorted once for all metrics of groups.

n rows, g groups, b blocks of equal score within a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Each:
    """What some groups are worth, each by itself."""

    values: Floats
    """[g]"""
    weights: Floats
    """How much each counts in the mean, [g]"""
    groups: Ints
    """[g]"""


@dataclass(frozen=True)
class GroupPart:
    """Whole groups, by their numbers."""

    logits: Floats
    """Falling within each group, [n]"""
    labels: Floats
    """0 or 1, of equal logits 0 first, [n]"""
    groups: Ints
    """[n]"""
    order: Ints
    """[n]: which of the rows that it was made of each is"""

    @classmethod
    def of(cls, rows: Mapping[str, NDArray[Any]]) -> "GroupPart":
        """Of logits, labels and groups [n], in any order."""
        logits, labels, groups = (rows[name] for name in ("logits", "labels", "groups"))
        order = np.lexsort((labels, -logits, groups))
        return cls(logits[order], labels[order].astype(np.float64), groups[order], order)

    def where(self, kept: NDArray[np.bool_]) -> "GroupPart":
        """Without the others of the rows that it was made of."""
        of = kept[self.order]
        return GroupPart(self.logits[of], self.labels[of], self.groups[of], self.order[of])

    @cached_property
    def starts(self) -> Ints:
        """Each group's first row, [g]"""
        return np.flatnonzero(np.diff(self.groups, prepend=self.groups[:1] - 1))

    @cached_property
    def sizes(self) -> Ints:
        """Each group's rows, [g]"""
        return np.diff(np.append(self.starts, len(self.labels)))

    @cached_property
    def numbers(self) -> Ints:
        """[g]"""
        return self.groups[self.starts]

    @cached_property
    def positives(self) -> Floats:
        """[g]"""
        return summed(self.labels, self.starts)

    @cached_property
    def blocks(self) -> Ints:
        """First row of each block of equal score, [b]"""
        new = np.ones(len(self.logits), dtype=bool)
        new[1:] = self.logits[1:] != self.logits[:-1]
        new[self.starts] = True
        return np.flatnonzero(new)

    @cached_property
    def ranked(self) -> "Ranked":
        """Those groups that have a positive."""
        keep = self.positives > 0
        label, sizes = self.labels[np.repeat(keep, self.sizes)], self.sizes[keep]
        starts = np.cumsum(sizes) - sizes
        place = np.arange(len(label)) - np.repeat(starts, sizes)
        return Ranked(label, place, starts, sizes, self.positives[keep], self.numbers[keep])


@dataclass(frozen=True)
class Ranked:
    """The rows of the groups that have a positive, group after group, each in the order of its scores."""

    label: Floats
    """0 or 1, [n]"""
    place: Ints
    """From 0, within the group, [n]"""
    starts: Ints
    """First row of each group, [g]"""
    sizes: Ints
    positives: Floats
    """Of each group, [g]"""
    groups: Ints
    """[g]"""

    def each(self, values: Floats) -> Each:
        """All groups, which count alike."""
        return Each(values, np.ones(len(values)), self.groups)

    def found(self, k: int | Floats) -> Floats:
        """Positives among the first k places of each group, [g]"""
        return summed(np.where(self.place < k, self.label, 0.0), self.starts)


def summed(values: Floats, starts: Ints) -> Floats:
    """float64 [n] -> sum from each start to the next."""
    return np.add.reduceat(values, starts) if len(starts) else np.empty(0)
