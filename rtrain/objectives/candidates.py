"""Candidates drawn for each user of a sampled evaluation, by the user's number: the same on any rank, in any batch.

Shape legend: B users, I items of the catalogue.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.keyed import drawn

Ids = NDArray[np.int64]
ROUNDS = 64
"""Draws after which who has nearly all items is given the lowest of those that are left."""
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
    found = taken[:0]
    for again in range(ROUNDS):
        missing = np.minimum(count, left) - np.bincount(found // items, minlength=users)
        if not missing.any():
            break
        user = np.repeat(np.arange(users), missing)
        place = np.arange(len(user)) - np.repeat(np.cumsum(missing) - missing, missing)
        item = (drawn(KEY, numbers[user], place, again) % np.uint64(items)).astype(np.int64)
        found = np.union1d(found, np.setdiff1d(user * items + item, taken))
    else:
        for short in np.flatnonzero(missing).tolist():
            rest = np.setdiff1d(np.arange(short * items, (short + 1) * items), np.union1d(taken, found))
            found = np.union1d(found, rest[: int(np.minimum(count, left)[short] - np.sum(found // items == short))])
    every = np.union1d(wanted, found)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(every // items, minlength=users))])
    return Candidates(catalogue[every % items], offsets)


def _pairs(lists: Any, catalogue: Ids) -> Ids:
    """User x items + place in the catalogue, rising, each once."""
    users = np.repeat(np.arange(len(lists.lengths)), lists.lengths)
    return np.unique(users * len(catalogue) + np.searchsorted(catalogue, lists.values))
