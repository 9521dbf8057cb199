"""The least that a model must beat: means of users and items, each on its own, and nothing about the pair.

Shape legend: n rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Floats

DAMPING = 10.0
"""Rows of the global mean that are mixed into every user's and item's own."""


@dataclass(frozen=True)
class Deviations:
    """Of each user, or of each item: how far its rows' mean lies from that of all, damped towards it."""

    keys: NDArray[np.int64]
    """Rising."""
    values: Floats

    @classmethod
    def fit(cls, keys: NDArray[np.int64], centred: Floats) -> "Deviations":
        """From rows [n]; `centred`: their labels less the mean of all."""
        unique, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return cls(unique, np.bincount(index, weights=centred) / (counts + DAMPING))

    def of(self, keys: NDArray[np.int64]) -> Floats:
        """float64 [n]; 0 for a stranger."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found: Floats = np.where(self.keys[at] == keys, self.values[at], 0.0)
        return found


@dataclass(frozen=True)
class Means:
    """The mean of all, and what each key (a user, an item) adds to it."""

    mean: float
    parts: tuple[Deviations, ...]

    @classmethod
    def fit(cls, labels: Floats, *keys: NDArray[np.int64]) -> "Means":
        """From the training rows [n], of which there is at least one; `keys`: one number a row each."""
        mean = float(labels.mean())
        return cls(mean, tuple(Deviations.fit(one, labels - mean) for one in keys))

    def predict(self, *keys: NDArray[np.int64]) -> Floats:
        """Probabilities, clipped into (0, 1), float64 [n]; a user or item that training did not have adds nothing."""
        clipped: Floats = np.clip(self.predict_numbers(*keys), 1e-3, 1 - 1e-3)
        return clipped

    def predict_numbers(self, *keys: NDArray[np.int64]) -> Floats:
        """As `predict`, of labels that are numbers: not clipped."""
        found: Floats = np.full(len(keys[0]), self.mean)
        for part, of in zip(self.parts, keys, strict=True):
            found = found + part.of(of)
        return found
