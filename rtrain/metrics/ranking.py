"""Metrics of the order within each group (each user's rows).

No value depends on the order of the rows or on the rank count, also where scores are equal. NDCG lets rows of
equal score share the mean gain of the places that they take up together, as scikit-learn's ndcg_score does.
The others put the negatives of a score before its positives: what a model cannot tell apart earns nothing.

All are means over the groups that have a positive; nan when none has one.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError
from rtrain.metrics.curves import auc
from rtrain.metrics.state import Floats, Metric, Partial, Retrieved, Scored, every_row


@dataclass(frozen=True)
class _Each:
    """What some groups are worth, each by itself."""

    values: Floats
    """[g]"""
    weights: Floats
    """How much each counts in the mean, [g]"""
    groups: NDArray[np.int64]
    """[g]"""


class _OfGroups(Metric):
    """A mean over groups."""

    by_group: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True
    short: ClassVar[str]
    by: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as `gauc`, or `gauc[user_id,timestamp]`."""
        return f"{self.short}[{','.join(self.by)}]" if self.by else self.short

    @abstractmethod
    def each(self, partial: Partial) -> _Each:
        """Of every group that counts."""

    def value(self, partial: Partial) -> float:
        """The mean; nan when no group counts."""
        each = self.each(partial)
        return _mean(each.values, each.weights)

    def weighted(self, scored: Scored) -> Callable[[Floats], float]:
        """As `rtrain.metrics.state.Weighable`: a group counts as often as its first row."""
        each = self.each(every_row(scored))
        groups, first = np.unique(scored.groups, return_index=True)
        row = first[np.searchsorted(groups, each.groups)]
        return lambda counts: _mean(each.values, each.weights * counts[row])


@dataclass(frozen=True, kw_only=True)
class _AtK(_OfGroups):
    """A metric of each group's first k places."""

    k: int = 10
    """Places that count."""
    by: tuple[str, ...] = ()
    """Columns of the data, features or not, whose rows of equal values are a group; none: `schema.group`."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"{type(self).__name__}.k: must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        """Such as `ndcg@10`, or `ndcg@10[user_id,timestamp]`."""
        head, bracket, columns = super().name.partition("[")
        return f"{head}@{self.k}{bracket}{columns}"

    def partial(self, scored: Scored | Retrieved) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)


@dataclass(frozen=True, kw_only=True)
class NDCG(_AtK):
    """Normalised discounted cumulative gain at k.

    Binary gains, discount 1 / log2(place + 1) (Jarvelin & Kekalainen, 2002).
    """

    short: ClassVar[str] = "ndcg"

    def each(self, partial: Partial) -> _Each:
        """Gain over the largest possible."""
        scores, labels, starts, sizes, groups = _sorted(partial)
        if not len(sizes):
            return _Each(np.empty(0), np.empty(0), groups)
        place = np.arange(len(scores)) - np.repeat(starts, sizes)
        discount = np.where(place < self.k, 1 / np.log2(place + 2.0), 0.0)
        # Within a group, rows of equal score are one block that shares its places' discounts evenly.
        new = np.ones(len(scores), dtype=bool)
        new[1:] = scores[1:] != scores[:-1]
        new[starts] = True
        blocks = np.flatnonzero(new)
        lengths = np.diff(np.append(blocks, len(scores)))
        shared = np.repeat(np.add.reduceat(discount, blocks) / lengths, lengths)
        gained = np.add.reduceat(labels * shared, starts)
        positives = np.add.reduceat(labels, starts).astype(np.int64)
        ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(self.k) + 2.0))])[np.minimum(positives, self.k)]
        ranked = positives > 0
        return _Each(gained[ranked] / ideal[ranked], np.ones(int(ranked.sum())), groups[ranked])


@dataclass(frozen=True, kw_only=True)
class PrecisionAt(_AtK):
    """Positives among the first k places / k, also for groups of fewer rows."""

    short: ClassVar[str] = "precision"

    def each(self, partial: Partial) -> _Each:
        """Of every group with a positive."""
        ranked = _ranked(partial)
        return ranked.each(ranked.found(self.k) / self.k)


@dataclass(frozen=True, kw_only=True)
class RecallAt(_AtK):
    """Positives among the first k places / all positives of the group."""

    short: ClassVar[str] = "recall"

    def each(self, partial: Partial) -> _Each:
        """Of every group with a positive."""
        ranked = _ranked(partial)
        return ranked.each(ranked.found(self.k) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class FAt(_AtK):
    """Harmonic mean of a group's precision and recall at k: 2 x found / (k + positives)."""

    short: ClassVar[str] = "f1"

    def each(self, partial: Partial) -> _Each:
        """Of every group with a positive."""
        ranked = _ranked(partial)
        return ranked.each(2 * ranked.found(self.k) / (self.k + ranked.positives))


@dataclass(frozen=True, kw_only=True)
class HitRate(_AtK):
    """Share of groups with a positive among the first k places."""

    short: ClassVar[str] = "hit_rate"

    def each(self, partial: Partial) -> _Each:
        """1 or 0."""
        ranked = _ranked(partial)
        return ranked.each((ranked.found(self.k) > 0).astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class MRR(_AtK):
    """Reciprocal place of the first positive, 0 where that is beyond k."""

    short: ClassVar[str] = "mrr"

    def each(self, partial: Partial) -> _Each:
        """Of every group with a positive."""
        ranked = _ranked(partial)
        reciprocal = np.where((ranked.label > 0) & (ranked.place < self.k), 1 / (ranked.place + 1.0), 0.0)
        return ranked.each(np.maximum.reduceat(reciprocal, ranked.starts) if len(ranked.starts) else reciprocal)


@dataclass(frozen=True, kw_only=True)
class MAP(_AtK):
    """Precision at the place of each positive among the first k, summed, / all positives of the group (TREC's AP@k)."""

    short: ClassVar[str] = "map"

    def each(self, partial: Partial) -> _Each:
        """Of every group with a positive."""
        ranked = _ranked(partial)
        before = np.cumsum(ranked.label)
        of_group = before - np.repeat(before[ranked.starts] - ranked.label[ranked.starts], ranked.sizes)
        precision = np.where(ranked.place < self.k, ranked.label * of_group / (ranked.place + 1.0), 0.0)
        return ranked.each(ranked.summed(precision) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class RPrecision(_OfGroups):
    """Precision at as many places as the group has positives."""

    short: ClassVar[str] = "r_precision"
    by: tuple[str, ...] = ()
    """Columns of the data, features or not, whose rows of equal values are a group; none: `schema.group`."""

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

    def each(self, partial: Partial) -> _Each:
        """Of every group with a positive."""
        ranked = _ranked(partial)
        return ranked.each(ranked.found(np.repeat(ranked.positives, ranked.sizes)) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class GAUC(_OfGroups):
    """AUC within each group, weighted by the group's rows; groups of one class are left out.

    Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.
    """

    short: ClassVar[str] = "gauc"
    by: tuple[str, ...] = ()
    """Columns of the data, features or not, whose rows of equal values are a group; none: `schema.group`."""

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

    def each(self, partial: Partial) -> _Each:
        """Of every group of both classes."""
        scores, labels, starts, sizes, groups = _sorted(partial)
        ends = starts + sizes
        areas = np.array([auc(scores[a:b], labels[a:b]) for a, b in zip(starts, ends, strict=True)], np.float64)
        both = ~np.isnan(areas)
        return _Each(areas[both], sizes[both].astype(np.float64), groups[both])


def _sorted(partial: Partial) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Logits (falling within each group) and labels, each group's first row, its number of rows, and its number."""
    scores, labels, groups = (partial.rows[k] for k in ("logits", "labels", "groups"))
    order = np.lexsort((labels, -scores, groups))
    numbers, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    return scores[order].astype(np.float64), labels[order].astype(np.float64), starts, sizes, numbers.astype(np.int64)


@dataclass(frozen=True)
class _Ranked:
    """The rows of the groups that have a positive, group after group, each in the order of its scores."""

    label: Floats
    """0 or 1, [n]"""
    place: NDArray[np.int64]
    """From 0, within the group, [n]"""
    starts: NDArray[np.int64]
    """First row of each group, [g]"""
    sizes: NDArray[np.int64]
    positives: Floats
    """Of each group, [g]"""
    groups: NDArray[np.int64]
    """[g]"""

    def each(self, values: Floats) -> _Each:
        """All groups, which count alike."""
        return _Each(values, np.ones(len(values)), self.groups)

    def summed(self, values: Floats) -> Floats:
        """Sum of each group's rows, [g]"""
        return np.add.reduceat(values, self.starts) if len(self.starts) else np.empty(0)

    def found(self, k: int | Floats) -> Floats:
        """Positives among the first k places of each group, [g]"""
        return self.summed(np.where(self.place < k, self.label, 0.0))


def _ranked(partial: Partial) -> _Ranked:
    _, labels, starts, sizes, groups = _sorted(partial)
    positives = np.add.reduceat(labels, starts) if len(starts) else np.empty(0)
    keep = positives > 0
    label, sizes = labels[np.repeat(keep, sizes)], sizes[keep]
    starts = np.cumsum(sizes) - sizes
    return _Ranked(
        label, np.arange(len(label)) - np.repeat(starts, sizes), starts, sizes, positives[keep], groups[keep]
    )


def _mean(values: Floats, weights: Floats) -> float:
    total = weights.sum()
    return float(values @ weights / total) if total else float("nan")
