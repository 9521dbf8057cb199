"""Metrics over all thresholds of the logits against 0/1 labels; they need every row."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Floats, Metric, Partial, Scored, every_row

Numbers = NDArray[np.float64 | np.int64]


class _OfCurve(Metric):
    """A metric of how many rows, and how many positives, each threshold leaves above it."""

    def partial(self, scored: Scored) -> Partial:
        """Every logit and label."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The metric of all rows."""
        curve = _curve(partial.rows["logits"], partial.rows["labels"])
        return self.of_curve(*curve(np.ones(len(partial.rows["labels"]))))

    def weighted(self, scored: Scored) -> Callable[[Floats], float]:
        """As `rtrain.metrics.state.Weighable`; the rows are sorted once."""
        curve = _curve(scored.logits, scored.labels)
        return lambda counts: self.of_curve(*curve(counts))

    @abstractmethod
    def of_curve(self, above: Floats, positives: Floats) -> float:
        """From the rows and positives of at least each distinct score, falling; the last are those of all rows."""


@dataclass(frozen=True, kw_only=True)
class AUC(_OfCurve):
    """Area under the ROC curve, exact: ties count one half; nan with one class only."""

    name: ClassVar[str] = "auc"
    higher_is_better: ClassVar[bool] = True

    def value(self, partial: Partial) -> float:
        """The probability that a random positive is scored above a random negative."""
        return auc(partial.rows["logits"], partial.rows["labels"])

    def of_curve(self, above: Floats, positives: Floats) -> float:
        """The area below the straight lines between its points."""
        negatives = above - positives
        if not len(above) or not positives[-1] or not negatives[-1]:
            return float("nan")
        won = np.diff(negatives, prepend=0.0) @ (positives + np.concatenate([[0.0], positives[:-1]])) / 2
        return float(won / positives[-1] / negatives[-1])


def auc(scores: Numbers, labels: Numbers) -> float:
    """Area under the ROC curve of float64 [n] scores; one sort, 10 M rows in seconds."""
    positives = float(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Rows of equal score share the mean of the ranks that they take up together.
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    last = np.concatenate([first[1:], [len(scores)]])
    won = np.add.reduceat(labels[order].astype(np.float64), first)
    rank_sum = float((won * (first + last + 1) / 2).sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


@dataclass(frozen=True, kw_only=True)
class AUPRC(_OfCurve):
    """Area under the precision-recall curve as average precision: no interpolation; nan without a positive."""

    name: ClassVar[str] = "auprc"
    higher_is_better: ClassVar[bool] = True

    def of_curve(self, above: Floats, positives: Floats) -> float:
        """The sum over thresholds of (gain in recall) x precision."""
        if not len(above) or not positives[-1]:
            return float("nan")
        gained = np.diff(positives, prepend=0.0) / positives[-1]
        return float((gained * positives / np.where(above, above, 1.0)).sum())


@dataclass(frozen=True, kw_only=True)
class KS(_OfCurve):
    """Kolmogorov-Smirnov: largest distance between the score distributions of the classes; nan with one class only."""

    name: ClassVar[str] = "ks"
    higher_is_better: ClassVar[bool] = True

    def of_curve(self, above: Floats, positives: Floats) -> float:
        """The distance."""
        if not len(above) or not 0 < positives[-1] < above[-1]:
            return float("nan")
        negatives = above - positives
        return float(np.abs(positives / positives[-1] - negatives / negatives[-1]).max())


def _curve(scores: Numbers, labels: Numbers) -> Callable[[Floats], tuple[Floats, Floats]]:
    """How often each row counts -> for each distinct score, falling, the rows of at least it and their positives."""
    order = np.argsort(-scores, kind="stable")
    ordered, positive = scores[order], labels[order].astype(np.float64)
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]])) if len(scores) else order

    def curve(counts: Floats) -> tuple[Floats, Floats]:
        counted = counts[order]
        return np.cumsum(counted)[last], np.cumsum(counted * positive)[last]

    return curve
