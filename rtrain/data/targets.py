"""What an objective is told of the positions of a batch, laid out as its rows are: see `RetrievalBatch.target`.

Shape legend: B rows, T positions of the longest row, n positions of all rows, F facts of a position, X items.
"""

import numpy as np
from numpy.typing import NDArray

from rtrain.data.columns import Lists
from rtrain.rounding import ceil_div

Ids = NDArray[np.int64]


def laid_out(facts: Ids, lengths: Ids) -> Ids:
    """[n, F] -> [B, T, F], -1 behind a row's end; `lengths`: positions of each row, [B]."""
    found = np.full((len(lengths), int(lengths.max()), facts.shape[1]), -1, np.int64)
    found[np.arange(found.shape[1]) < lengths[:, None]] = facts
    return found


def starts_of(whole: Ids, lengths: Ids, numbers: Ids) -> Ids:
    """[B]: the first position of each of `numbers` among all of a global batch, in the order of its samples' numbers.

    `whole`: those numbers, in any order, and how many positions each has.
    """
    order = np.argsort(whole)
    ends = np.cumsum(lengths[order])
    at = np.searchsorted(whole, numbers, sorter=order)
    starts: Ids = ends[at] - lengths[order][at]
    return starts


def spread(lists: Lists, wanted: Ids, positions: int) -> Ids:
    """[B, T, X]: of each row's list what is `wanted`, over its positions, -1 behind.

    Over the positions, for what a row has, not a position, would else be there as often as it has positions.
    """
    marked = np.zeros(int(max(lists.values.max(initial=0), wanted.max(initial=0))) + 1, bool)
    marked[wanted] = True
    kept = marked[lists.values]
    upto = np.concatenate([[0], np.cumsum(kept)])
    lengths = np.diff(upto[lists.offsets])
    share = ceil_div(int(lengths.max(initial=0)), positions)
    found = np.full((len(lengths), positions * share), -1, np.int64)
    found[np.arange(positions * share) < lengths[:, None]] = lists.values[kept]
    return found.reshape(len(lengths), positions, share)
