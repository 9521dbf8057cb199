"""Metrics over all thresholds of the logits against 0/1 labels; they need every row."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Floats, Metric, Partial, Scored, every_row


@dataclass(frozen=True, kw_only=True)
class AUC(Metric):
    """Area under the ROC curve, exact: ties count one half; nan with one class only."""

    name: ClassVar[str] = "auc"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        """Every logit and label."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The probability that a random positive is scored above a random negative."""
        return auc(partial.rows["logits"], partial.rows["labels"])


def auc(scores: NDArray[np.float64 | np.int64], labels: NDArray[np.float64 | np.int64]) -> float:
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
class AUPRC(Metric):
    """Area under the precision-recall curve as average precision: no interpolation; nan without a positive."""

    name: ClassVar[str] = "auprc"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        """Every logit and label."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The sum over thresholds of (gain in recall) x precision."""
        above, positives_above = _above(partial)
        if not len(above) or not positives_above[-1]:
            return float("nan")
        gained = np.diff(positives_above, prepend=0.0) / positives_above[-1]
        return float((gained * positives_above / above).sum())


@dataclass(frozen=True, kw_only=True)
class KS(Metric):
    """Kolmogorov-Smirnov: largest distance between the score distributions of the classes; nan with one class only."""

    name: ClassVar[str] = "ks"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        """Every logit and label."""
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        """The distance."""
        above, positives_above = _above(partial)
        positives = positives_above[-1] if len(above) else 0.0
        if not positives or positives == above[-1]:
            return float("nan")
        negatives_above = above - positives_above
        return float(np.abs(positives_above / positives - negatives_above / negatives_above[-1]).max())


def _above(partial: Partial) -> tuple[Floats, Floats]:
    """For each distinct score, falling: rows of at least that score, and the positives among them."""
    scores, labels = partial.rows["logits"], partial.rows["labels"]
    if not len(scores):
        return np.empty(0), np.empty(0)
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    return (last + 1).astype(np.float64), np.cumsum(labels[order], dtype=np.float64)[last]
