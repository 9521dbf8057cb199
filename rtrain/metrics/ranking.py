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

from rtrain.errors import ConfigError
from rtrain.metrics.exact import as_number, exactly
from rtrain.metrics.groups import Each, GroupPart, summed
from rtrain.metrics.parted import Dealing
from rtrain.metrics.state import Floats, Metric, Partial, Retrieved, Scored, every_row


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
    def each(self, part: GroupPart) -> Each:
        """Of every group that counts."""

    def value(self, partial: Partial) -> float:
        """The mean; nan when no group counts."""
        return self.of_parts(self.of_part(GroupPart.of(partial.rows)))

    def of_part(self, part: GroupPart) -> Partial:
        """Sums over the groups, so that the mean is the same bit for bit however they are dealt out."""
        each = self.each(part)
        return Partial(sums={"values": exactly(each.values * each.weights), "weights": np.array(each.weights.sum())})

    def of_parts(self, partial: Partial) -> float:
        """The mean of all groups; nan when none counts."""
        weights = float(partial.sums["weights"])
        return as_number(partial.sums["values"]) / weights if weights else float("nan")

    def weighted(self, scored: Scored) -> Callable[[Floats], float]:
        """As `rtrain.metrics.state.Weighable`: a group counts as often as its first row."""
        each = self.each(GroupPart.of(every_row(scored).rows))
        groups, first = np.unique(scored.groups, return_index=True)
        row = first[np.searchsorted(groups, each.groups)]
        return lambda counts: _mean(each.values, each.weights * counts[row])


@dataclass(frozen=True, kw_only=True)
class _AtK(_OfGroups):
    """A metric of each group's first k places."""

    dealt_by: ClassVar[Dealing] = "groups"
    k: int = 10
    """Places that count."""
    by: tuple[str, ...] = ()
    """Columns of the data, features or not, whose rows of equal values are a group; none: `schema.group`."""
    sampled: int = 0
    """Of a retrieval model: candidates drawn for each user, from those that the user did not have, beside what is to be
    found; 0: every item is one. Only for figures that others give so: what is drawn can order models otherwise than all
    items do (Krichene & Rendle, KDD 2020), and the name says it."""

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("sampled", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{type(self).__name__}.{name}: must be at least {least}, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """Such as `ndcg@10`, `ndcg@10[user_id,timestamp]`, or `ndcg@10_of_100_sampled`."""
        head, bracket, columns = super().name.partition("[")
        sampled = f"_of_{self.sampled}_sampled" if self.sampled else ""
        return f"{head}@{self.k}{sampled}{bracket}{columns}"

    def partial(self, scored: Scored | Retrieved) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)


@dataclass(frozen=True, kw_only=True)
class NDCG(_AtK):
    """Normalised discounted cumulative gain at k.

    Binary gains, discount 1 / log2(place + 1) (Jarvelin & Kekalainen, 2002).
    """

    short: ClassVar[str] = "ndcg"

    def each(self, part: GroupPart) -> Each:
        """Gain over the largest possible."""
        place = np.arange(len(part.labels)) - np.repeat(part.starts, part.sizes)
        discount = np.where(place < self.k, 1 / np.log2(place + 2.0), 0.0)
        # Within a group, rows of equal score are one block that shares its places' discounts evenly.
        lengths = np.diff(np.append(part.blocks, len(part.labels)))
        shared = np.repeat(summed(discount, part.blocks) / lengths, lengths)
        gained, positives = summed(part.labels * shared, part.starts), part.positives.astype(np.int64)
        ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(self.k) + 2.0))])[np.minimum(positives, self.k)]
        ranked = positives > 0
        return Each(gained[ranked] / ideal[ranked], np.ones(int(ranked.sum())), part.numbers[ranked])


@dataclass(frozen=True, kw_only=True)
class PrecisionAt(_AtK):
    """Positives among the first k places / k, also for groups of fewer rows."""

    short: ClassVar[str] = "precision"

    def each(self, part: GroupPart) -> Each:
        """Of every group with a positive."""
        ranked = part.ranked
        return ranked.each(ranked.found(self.k) / self.k)


@dataclass(frozen=True, kw_only=True)
class RecallAt(_AtK):
    """Positives among the first k places / all positives of the group."""

    short: ClassVar[str] = "recall"

    def each(self, part: GroupPart) -> Each:
        """Of every group with a positive."""
        ranked = part.ranked
        return ranked.each(ranked.found(self.k) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class FAt(_AtK):
    """Harmonic mean of a group's precision and recall at k: 2 x found / (k + positives)."""

    short: ClassVar[str] = "f1"

    def each(self, part: GroupPart) -> Each:
        """Of every group with a positive."""
        ranked = part.ranked
        return ranked.each(2 * ranked.found(self.k) / (self.k + ranked.positives))


@dataclass(frozen=True, kw_only=True)
class HitRate(_AtK):
    """Share of groups with a positive among the first k places."""

    short: ClassVar[str] = "hit_rate"

    def each(self, part: GroupPart) -> Each:
        """1 or 0."""
        ranked = part.ranked
        return ranked.each((ranked.found(self.k) > 0).astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class MRR(_AtK):
    """Reciprocal place of the first positive, 0 where that is beyond k."""

    short: ClassVar[str] = "mrr"

    def each(self, part: GroupPart) -> Each:
        """Of every group with a positive."""
        ranked = part.ranked
        reciprocal = np.where((ranked.label > 0) & (ranked.place < self.k), 1 / (ranked.place + 1.0), 0.0)
        return ranked.each(np.maximum.reduceat(reciprocal, ranked.starts) if len(ranked.starts) else reciprocal)


@dataclass(frozen=True, kw_only=True)
class MAP(_AtK):
    """Precision at the place of each positive among the first k, summed, / all positives of the group (TREC's AP@k)."""

    short: ClassVar[str] = "map"

    def each(self, part: GroupPart) -> Each:
        """Of every group with a positive."""
        ranked = part.ranked
        before = np.cumsum(ranked.label)
        of_group = before - np.repeat(before[ranked.starts] - ranked.label[ranked.starts], ranked.sizes)
        precision = np.where(ranked.place < self.k, ranked.label * of_group / (ranked.place + 1.0), 0.0)
        return ranked.each(summed(precision, ranked.starts) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class RPrecision(_OfGroups):
    """Precision at as many places as the group has positives."""

    dealt_by: ClassVar[Dealing] = "groups"
    short: ClassVar[str] = "r_precision"
    by: tuple[str, ...] = ()
    """Columns of the data, features or not, whose rows of equal values are a group; none: `schema.group`."""

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

    def each(self, part: GroupPart) -> Each:
        """Of every group with a positive."""
        ranked = part.ranked
        return ranked.each(ranked.found(np.repeat(ranked.positives, ranked.sizes)) / ranked.positives)


@dataclass(frozen=True, kw_only=True)
class GAUC(_OfGroups):
    """AUC within each group, weighted by the group's rows; groups of one class are left out.

    Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.
    """

    dealt_by: ClassVar[Dealing] = "groups"
    short: ClassVar[str] = "gauc"
    by: tuple[str, ...] = ()
    """Columns of the data, features or not, whose rows of equal values are a group; none: `schema.group`."""

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

    def each(self, part: GroupPart) -> Each:
        """Of every group of both classes."""
        positives, first = summed(part.labels, part.blocks), np.searchsorted(part.blocks, part.starts)
        lengths, blocks = np.diff(np.append(part.blocks, len(part.labels))), np.diff(np.append(first, len(part.blocks)))
        above = np.cumsum(positives) - positives
        above = above - np.repeat(above[first], blocks)  # of the same group
        won = summed((lengths - positives) * (above + positives / 2), first)
        pairs = part.positives * (part.sizes - part.positives)
        both = pairs > 0
        return Each(won[both] / pairs[both], part.sizes[both].astype(np.float64), part.numbers[both])


def _mean(values: Floats, weights: Floats) -> float:
    total = weights.sum()
    return float(values @ weights / total) if total else float("nan")
