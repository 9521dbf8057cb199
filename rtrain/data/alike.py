"""How alike two items are, by who had both."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

LOOKED_UP = 2**22
"""Users that are looked up at a time, in some 100 MB."""


class HadTogether:
    """Cosine of two items' users, as item-based neighbours are found (Sarwar et al., WWW 2001).

    Who had both / sqrt(who had the one * who had the other): 0 to 1; 0 of an item that nobody had.
    """

    def __init__(self, users: Ids, items: Ids):
        """Of interactions [N] each; one that is there several times counts once."""
        self._span = int(users.max(initial=-1)) + 1
        self._keys = np.unique(items * self._span + users)
        self._items, self._first, self._counts = np.unique(
            self._keys // max(1, self._span), return_index=True, return_counts=True
        )

    def __call__(self, left: Ids, right: Ids) -> NDArray[np.float64]:
        """Of each pair, [n]."""
        (at_left, of_left), (at_right, of_right) = self._found(left), self._found(right)
        shorter = of_left <= of_right
        starts, lengths = np.where(shorter, at_left, at_right), np.minimum(of_left, of_right)
        longer = np.where(shorter, right, left)
        both = np.zeros(len(left))
        ends = np.cumsum(lengths)
        begin = 0
        while begin < len(left):
            before = ends[begin] - lengths[begin]
            end = max(begin + 1, int(np.searchsorted(ends, before + LOOKED_UP, side="right")))
            both[begin:end] = self._common(starts[begin:end], lengths[begin:end], longer[begin:end])
            begin = end
        cosine: NDArray[np.float64] = both / np.sqrt(np.maximum(1, of_left * of_right))
        return cosine

    def _found(self, items: Ids) -> tuple[Ids, Ids]:
        """Where each item's users begin among the keys, and how many they are."""
        if not len(self._items):
            return np.zeros_like(items), np.zeros_like(items)
        at = np.minimum(np.searchsorted(self._items, items), len(self._items) - 1)
        return self._first[at], np.where(self._items[at] == items, self._counts[at], 0)

    def _common(self, starts: Ids, lengths: Ids, others: Ids) -> Ids:
        """Of users that begin at `starts`, how many had the other item too."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        wanted = np.repeat(others, lengths) * self._span + self._keys[at] % max(1, self._span)
        found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        hits = np.concatenate([[0], np.cumsum(self._keys[found] == wanted)])
        common: Ids = hits[offsets[1:]] - hits[offsets[:-1]]
        return common
