"""The least that a model must beat: a user's and an item's own mean, and nothing about the pair."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Floats

DAMPING = 10.0
"""Rows of the global mean that are mixed into every user's and item's own."""


@dataclass(frozen=True)
class UserItemBias:
    """global mean + user's deviation + item's deviation."""

    mean: float
    users: dict[int, float]
    items: dict[int, float]

    @classmethod
    def fit(cls, users: NDArray[np.int64], items: NDArray[np.int64], labels: NDArray[np.float64]) -> "UserItemBias":
        """From the training rows [n]; each mean is damped towards the global one."""
        mean = float(labels.mean())
        return cls(mean, _deviations(users, labels - mean), _deviations(items, labels - mean))

    def predict(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        """Probabilities, clipped into (0, 1), float64 [n]; a user or item that training did not have adds nothing."""
        clipped: Floats = np.clip(self.predict_numbers(users, items), 1e-3, 1 - 1e-3)
        return clipped

    def predict_numbers(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        """As `predict`, of labels that are numbers: not clipped."""
        by_user = np.array([self.users.get(u, 0.0) for u in users.tolist()])
        by_item = np.array([self.items.get(i, 0.0) for i in items.tolist()])
        found: Floats = self.mean + by_user + by_item
        return found


def _deviations(keys: NDArray[np.int64], centred: NDArray[np.float64]) -> dict[int, float]:
    unique, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.bincount(index, weights=centred)
    return dict(zip(unique.tolist(), (sums / (counts + DAMPING)).tolist(), strict=True))
