"""Candidates drawn for each user of a sampled evaluation, by the user's number: the same on any rank, in any batch.

Shape legend: B users, I items of the catalogue.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.keyed import drawn

Ids = NDArray[np.int64]
KEY = 20_20
"""Sets the draws apart from those of training."""


@dataclass(frozen=True)
class Candidates:
    """Items of each user, one list after the other."""

    values: Ids
    offsets: Ids
    """[B + 1]"""

    @property
    def lengths(self) -> Ids:
        """[B]"""
        return np.diff(self.offsets)


def candidates(catalogue: Ids, numbers: Ids, seen: Any, positives: Any, count: int) -> Candidates:
    """Of each user what is to be found and `count` different items of neither list, or all such where they are fewer.

    `catalogue`: rising, [I]; `numbers`: the users', [B]; `seen` and `positives`: lists of items.
    """
    users, items = len(seen.lengths), len(catalogue)
    wanted, had = (_pairs(lists, catalogue) for lists in (positives, seen))
    taken = np.union1d(wanted, had)
    left = items - np.bincount(taken // items, minlength=users)
    most = 4 * count >= left
    found = np.concatenate(
        [taken[:0], *(_some(user, int(numbers[user]), taken, items, count) for user in _places(most))]
    )
    need, again = np.where(most, 0, count), 0
    while (missing := need - np.bincount(found // items, minlength=users) * ~most).any():
        user = np.repeat(np.arange(users), missing)
        place = np.arange(len(user)) - np.repeat(np.cumsum(missing) - missing, missing)
        item = (drawn(KEY, numbers[user], place, again) % np.uint64(items)).astype(np.int64)
        found, again = np.union1d(found, np.setdiff1d(user * items + item, taken)), again + 1
    every = np.union1d(wanted, found)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(every // items, minlength=users))])
    return Candidates(catalogue[every % items], offsets)


def _places(chosen: NDArray[np.bool_]) -> list[int]:
    found: list[int] = np.flatnonzero(chosen).tolist()
    return found


def _some(user: int, number: int, taken: Ids, items: int, count: int) -> Ids:
    """Of a user whose items are mostly wanted: pairs of all that are left, in an order of chance, up to `count`."""
    first, last = np.searchsorted(taken, [user * items, (user + 1) * items])
    left = np.setdiff1d(np.arange(items), taken[first:last] - user * items)
    return user * items + left[np.argsort(drawn(KEY, number, left))][:count]


def _pairs(lists: Any, catalogue: Ids) -> Ids:
    """User x items + place in the catalogue, rising, each once."""
    users = np.repeat(np.arange(len(lists.lengths)), lists.lengths)
    return np.unique(users * len(catalogue) + np.searchsorted(catalogue, lists.values))
