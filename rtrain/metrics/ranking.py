"""Metrics of the order within each group (each user's rows).

Rows of equal score share the mean gain of the places that they take up together, as in
scikit-learn's ndcg_score: the value depends on neither the order of the rows nor the rank count.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError
from rtrain.metrics.classification import auc
from rtrain.metrics.state import Floats, Partial, Scored, every_row


@dataclass(frozen=True, kw_only=True)
class NDCG:
    """Normalised discounted cumulative gain at k, mean over the groups that have a positive.

    Binary gains, discount 1 / log2(place + 1) (Jarvelin & Kekalainen, 2002).
    """

    k: int = 10
    """Places that count."""
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"NDCG.k: must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        """`ndcg@k`"""
        return f"ndcg@{self.k}"

    def partial(self, scored: Scored) -> Partial:
        """Every row: a group's rows may lie on several ranks."""
        return every_row(scored)

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
class GAUC:
    """AUC within each group, weighted by the group's rows; groups of one class are left out.

    Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.
    """

    name: ClassVar[str] = "gauc"
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
    """Scores (falling within each group) and labels, each group's first row and its number of rows."""
    scores, labels, groups = (partial.rows[k] for k in ("scores", "labels", "groups"))
    order = np.lexsort((labels, -scores, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    return scores[order].astype(np.float64), labels[order].astype(np.float64), starts, sizes
