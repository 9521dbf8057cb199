"""Metrics over all thresholds of the logits against 0/1 labels; they need every row.

n rows, s distinct scores.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.exact import as_number, exactly
from rtrain.metrics.parted import Dealing
from rtrain.metrics.state import Floats, Metric, Partial, Scored, every_row

Numbers = NDArray[np.float64 | np.int64]


@dataclass(frozen=True)
class Count:
    """How many of some rows there are."""

    rows: float = 0.0
    positives: float = 0.0

    @classmethod
    def sum(cls, counts: Sequence["Count"]) -> "Count":
        """Of all of them."""
        return cls(sum(of.rows for of in counts), sum(of.positives for of in counts))


@dataclass(frozen=True)
class Curve:
    """How many rows and positives the thresholds of one part leave above them, in that part and those ahead of it."""

    above: Floats
    """Rows of at least each distinct score, falling, [s]"""
    positives: Floats
    """[s]"""
    ahead: Count
    """In the parts of higher scores."""
    total: Count
    """In all parts."""

    @property
    def here(self) -> dict[str, Floats]:
        """Rows and positives of this part, as sums."""
        rows, positives = (
            float(x[-1] - ahead) if len(x) else 0.0
            for x, ahead in ((self.above, self.ahead.rows), (self.positives, self.ahead.positives))
        )
        return {"rows": np.array(rows), "positives": np.array(positives)}


@dataclass(frozen=True)
class ScorePart:
    """All rows of a range of scores."""

    logits: Floats
    """Falling, [n]"""
    labels: Floats
    """0 or 1, [n]"""
    order: NDArray[np.int64]
    """[n]: which of the rows that it was made of each is"""
    ahead: Count = Count()
    """In the parts of higher scores."""
    total: Count | None = None
    """In all parts; none: this is all."""

    @classmethod
    def of(cls, rows: Mapping[str, NDArray[Any]]) -> "ScorePart":
        """Of logits and labels [n], in any order."""
        order = np.argsort(-rows["logits"], kind="stable")
        return cls(rows["logits"][order], rows["labels"][order].astype(np.float64), order)

    def where(self, kept: NDArray[np.bool_]) -> "ScorePart":
        """Without the others of the rows that it was made of; nothing is known of other parts then."""
        of = kept[self.order]
        return ScorePart(self.logits[of], self.labels[of], self.order[of])

    @property
    def count(self) -> Count:
        """Of its rows."""
        return Count(float(len(self.labels)), float(self.labels.sum()))

    @cached_property
    def last(self) -> NDArray[np.int64]:
        """The last row of each distinct score, [s]"""
        return np.flatnonzero(np.append(self.logits[1:] != self.logits[:-1], len(self.logits) > 0))

    @cached_property
    def curve(self) -> Curve:
        """Of every row once."""
        return self.weighted(np.ones(len(self.labels)))

    def weighted(self, counts: Floats) -> Curve:
        """Of rows that count that often each, [n], in the order of this part."""
        above = self.ahead.rows + np.cumsum(counts)[self.last]
        positives = self.ahead.positives + np.cumsum(counts * self.labels)[self.last]
        own = Count(float(above[-1]), float(positives[-1])) if len(above) else Count()
        return Curve(above, positives, self.ahead, self.total or own)


class _OfCurve(Metric):
    """A metric of how many rows, and how many positives, each threshold leaves above it."""

    dealt_by: ClassVar[Dealing] = "scores"

    def partial(self, scored: Scored) -> Partial:
        """Every logit and label."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The metric of all rows."""
        return self.of_parts(self.of_part(ScorePart.of(partial.rows)))

    def weighted(self, scored: Scored) -> Callable[[Floats], float]:
        """As `rtrain.metrics.state.Weighable`; the rows are sorted once."""
        part = ScorePart.of(every_row(scored).rows)
        return lambda counts: self.of_parts(self.of_curve(part.weighted(counts[part.order])))

    def of_part(self, part: ScorePart) -> Partial:
        """What a part adds; its curve is made once for all metrics."""
        return self.of_curve(part.curve)

    @abstractmethod
    def of_curve(self, curve: Curve) -> Partial:
        """What a part of this curve adds."""

    @abstractmethod
    def of_parts(self, partial: Partial) -> float:
        """The metric, of the states of all parts together."""


@dataclass(frozen=True, kw_only=True)
class AUC(_OfCurve):
    """Area under the ROC curve, exact: ties count one half; nan with one class only."""

    name: ClassVar[str] = "auc"
    higher_is_better: ClassVar[bool] = True

    def of_curve(self, curve: Curve) -> Partial:
        """Twice the pairs of a positive above a negative, those of equal score once: whole numbers below 2**53."""
        negatives = curve.above - curve.positives
        fallen = np.diff(negatives, prepend=curve.ahead.rows - curve.ahead.positives)
        before = np.concatenate([[curve.ahead.positives], curve.positives[:-1]])[: len(fallen)]
        return Partial(sums={"won": np.array(fallen @ (curve.positives + before)), **curve.here})

    def of_parts(self, partial: Partial) -> float:
        """The probability that a random positive is scored above a random negative."""
        won, rows, positives = (float(partial.sums[name]) for name in ("won", "rows", "positives"))
        if not 0 < positives < rows:
            return float("nan")
        return won / 2 / (positives * (rows - positives))


def auc(scores: Numbers, labels: Numbers) -> float:
    """Area under the ROC curve of float64 [n] scores; one sort, 10 M rows in seconds."""
    return AUC().value(Partial(rows={"logits": scores, "labels": labels}))


@dataclass(frozen=True, kw_only=True)
class AUPRC(_OfCurve):
    """Area under the precision-recall curve as average precision: no interpolation; nan without a positive."""

    name: ClassVar[str] = "auprc"
    higher_is_better: ClassVar[bool] = True

    def of_curve(self, curve: Curve) -> Partial:
        """The sum over thresholds of (positives gained) x precision."""
        gained = np.diff(curve.positives, prepend=curve.ahead.positives)
        precision = curve.positives / np.where(curve.above, curve.above, 1.0)
        return Partial(sums={"gained": exactly(gained * precision), **curve.here})

    def of_parts(self, partial: Partial) -> float:
        """The sum of (gain in recall) x precision."""
        positives = float(partial.sums["positives"])
        return as_number(partial.sums["gained"]) / positives if positives else float("nan")


@dataclass(frozen=True, kw_only=True)
class KS(_OfCurve):
    """Kolmogorov-Smirnov: largest distance between the score distributions of the classes; nan with one class only."""

    name: ClassVar[str] = "ks"
    higher_is_better: ClassVar[bool] = True

    def of_curve(self, curve: Curve) -> Partial:
        """The largest distance at a threshold of the part, where it has one and there are both classes."""
        total = curve.total
        if not len(curve.above) or not 0 < total.positives < total.rows:
            return Partial(rows={"distance": np.empty(0)})
        negatives = curve.above - curve.positives
        apart = np.abs(curve.positives / total.positives - negatives / (total.rows - total.positives))
        return Partial(rows={"distance": apart.max(keepdims=True)})

    def of_parts(self, partial: Partial) -> float:
        """The largest of all parts."""
        distance = partial.rows["distance"]
        return float(distance.max()) if len(distance) else float("nan")
