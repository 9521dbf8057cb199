"""Metrics of the order within each group (each user's rows).

No value depends on the order of the rows or on the rank count, also where scores are equal. NDCG lets rows of
equal score share the mean gain of the places that they take up together, as scikit-learn's ndcg_score does.
The others put the negatives of a score before its positives: what a model cannot tell apart earns nothing.

All are means over the groups that have a positive; nan when none has one.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError
from rtrain.metrics.curves import auc
from rtrain.metrics.state import Floats, Metric, Partial, Retrieved, Scored, every_row


@dataclass(frozen=True, kw_only=True)
class _AtK(Metric):
    """A metric of each group's first k places."""

    by_group: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True
    short: ClassVar[str]
    k: int = 10
    """Places that count."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"{type(self).__name__}.k: must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        """Such as `ndcg@10`."""
        return f"{self.short}@{self.k}"

    def partial(self, scored: Scored | Retrieved) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)


@dataclass(frozen=True, kw_only=True)
class NDCG(_AtK):
    """Normalised discounted cumulative gain at k.

    Binary gains, discount 1 / log2(place + 1) (Jarvelin & Kekalainen, 2002).
    """

    short: ClassVar[str] = "ndcg"

    def value(self, partial: Partial) -> float:
        """The mean over groups; nan when no group has a positive."""
        scores, labels, starts, sizes = _sorted(partial)
        if not len(sizes):
            return float("nan")
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
        return float((gained[ranked] / ideal[ranked]).mean()) if ranked.any() else float("nan")


@dataclass(frozen=True, kw_only=True)
class PrecisionAt(_AtK):
    """Positives among the first k places / k, also for groups of fewer rows."""

    short: ClassVar[str] = "precision"

    def value(self, partial: Partial) -> float:
        """The mean over groups."""
        ranked = _ranked(partial)
        return _mean(ranked.found(self.k) / self.k)


@dataclass(frozen=True, kw_only=True)
class RecallAt(_AtK):
    """Positives among the first k places / all positives of the group."""

    short: ClassVar[str] = "recall"

    def value(self, partial: Partial) -> float:
        """The mean over groups."""
        ranked = _ranked(partial)
        return _mean(ranked.found(self.k) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class FAt(_AtK):
    """Harmonic mean of a group's precision and recall at k: 2 x found / (k + positives)."""

    short: ClassVar[str] = "f1"

    def value(self, partial: Partial) -> float:
        """The mean over groups."""
        ranked = _ranked(partial)
        return _mean(2 * ranked.found(self.k) / (self.k + ranked.positives))


@dataclass(frozen=True, kw_only=True)
class HitRate(_AtK):
    """Share of groups with a positive among the first k places."""

    short: ClassVar[str] = "hit_rate"

    def value(self, partial: Partial) -> float:
        """The share."""
        return _mean(_ranked(partial).found(self.k) > 0)


@dataclass(frozen=True, kw_only=True)
class MRR(_AtK):
    """Reciprocal place of the first positive, 0 where that is beyond k."""

    short: ClassVar[str] = "mrr"

    def value(self, partial: Partial) -> float:
        """The mean over groups."""
        ranked = _ranked(partial)
        reciprocal = np.where((ranked.label > 0) & (ranked.place < self.k), 1 / (ranked.place + 1.0), 0.0)
        return _mean(np.maximum.reduceat(reciprocal, ranked.starts) if len(ranked.starts) else reciprocal)


@dataclass(frozen=True, kw_only=True)
class MAP(_AtK):
    """Precision at the place of each positive among the first k, summed, / all positives of the group (TREC's AP@k)."""

    short: ClassVar[str] = "map"

    def value(self, partial: Partial) -> float:
        """The mean over groups."""
        ranked = _ranked(partial)
        before = np.cumsum(ranked.label)
        of_group = before - np.repeat(before[ranked.starts] - ranked.label[ranked.starts], ranked.sizes)
        precision = np.where(ranked.place < self.k, ranked.label * of_group / (ranked.place + 1.0), 0.0)
        return _mean(ranked.summed(precision) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class RPrecision(Metric):
    """Precision at as many places as the group has positives."""

    name: ClassVar[str] = "r_precision"
    by_group: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The mean over groups."""
        ranked = _ranked(partial)
        return _mean(ranked.found(np.repeat(ranked.positives, ranked.sizes)) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class GAUC(Metric):
    """AUC within each group, weighted by the group's rows; groups of one class are left out.

    Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.
    """

    name: ClassVar[str] = "gauc"
    by_group: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The weighted mean; nan when no group has both classes."""
        scores, labels, starts, sizes = _sorted(partial)
        total = weight = 0.0
        for start, size in zip(starts, sizes, strict=True):
            area = auc(scores[start : start + size], labels[start : start + size])
            if area == area:
                total += area * size
                weight += size
        return float(total / weight) if weight else float("nan")


def _sorted(partial: Partial) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Logits (falling within each group) and labels, each group's first row and its number of rows."""
    scores, labels, groups = (partial.rows[k] for k in ("logits", "labels", "groups"))
    order = np.lexsort((labels, -scores, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    return scores[order].astype(np.float64), labels[order].astype(np.float64), starts, sizes


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

    def summed(self, values: Floats) -> Floats:
        """Sum of each group's rows, [g]"""
        return np.add.reduceat(values, self.starts) if len(self.starts) else np.empty(0)

    def found(self, k: int | Floats) -> Floats:
        """Positives among the first k places of each group, [g]"""
        return self.summed(np.where(self.place < k, self.label, 0.0))


def _ranked(partial: Partial) -> _Ranked:
    _, labels, starts, sizes = _sorted(partial)
    positives = np.add.reduceat(labels, starts) if len(starts) else np.empty(0)
    keep = positives > 0
    label, sizes = labels[np.repeat(keep, sizes)], sizes[keep]
    starts = np.cumsum(sizes) - sizes
    return _Ranked(label, np.arange(len(label)) - np.repeat(starts, sizes), starts, sizes, positives[keep])


def _mean(of_groups: NDArray[np.float64 | np.bool_]) -> float:
    return float(of_groups.mean()) if len(of_groups) else float("nan")
