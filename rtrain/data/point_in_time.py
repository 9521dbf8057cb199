"""Features of rows from strictly older rows: means of what user, item, lists and neighbours have left over.

Rows are interactions sorted by time, of own data or of MovieLens (`rtrain.data.movielens` calls all of this). A row
sees the rows of an earlier time only: rows of the same time do not see each other, since their order is not known.
Sums are differences of running sums, so a later value moves an earlier feature by rounding alone (1e-12).

Shape legend: N rows, P pairs of rows of one user.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtrain.data.columns import Lists
from rtrain.errors import DataError

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]

OVERALL_ROWS = 20.0
"""Rows of `prior_mean` that damp the mean of all rows."""
ITEM_ROWS = 5.0
"""Rows of zero that damp an item's mean residual."""
USER_ROWS = 3.0
"""Rows of zero that damp a user's mean residual, over all its rows or over those with one value of a list."""
COMMON_ROWS = 10.0
"""Users in common at which the similarity of two items counts half."""
NEAR_WEIGHT = 0.2
"""Similarity of a neighbour of residual zero that damps `near_means`."""
RENEW_ROWS = 1_000
"""Rows after which the similarities of items are renewed."""
MOST_ITEMS = 5_000
"""Items beyond which the similarities of all pairs, five square tables of float64, are refused (1 GB)."""


@dataclass(frozen=True)
class Past:
    """For each row, where the rows with its key that are strictly older lie."""

    by_key: NDArray[np.int64]
    """[N] row numbers in the order that brings equal keys together, oldest first"""
    first: NDArray[np.int64]
    """[N] in that order, where the row's key begins"""
    stop: NDArray[np.int64]
    """[N] and where the first row begins that is not strictly older"""

    @classmethod
    def of(cls, key: Ints, time: Ints) -> "Past":
        """From each row's key, any integers [N], and time, [N], which the caller has seen to be as many.

        Raises:
            DataError: rows that are not sorted by time.
        """
        if len(time) and (early := np.flatnonzero(time[1:] < time[:-1])).size:
            raise DataError(f"point in time: row {early[0] + 1} is older than the row before it. Sort the rows by time")
        by_key = np.argsort(key, kind="stable")
        new_key = _changes(key[by_key])
        new_moment = new_key | _changes(time[by_key])
        places = np.arange(len(key))
        first, stop = np.empty(len(key), np.int64), np.empty(len(key), np.int64)
        first[by_key] = np.maximum.accumulate(np.where(new_key, places, 0))
        stop[by_key] = np.maximum.accumulate(np.where(new_moment, places, 0))
        return cls(by_key, first, stop)

    @property
    def count(self) -> NDArray[np.int64]:
        """int64 [N]: how many rows are older."""
        return self.stop - self.first

    def sums(self, values: Floats) -> Floats:
        """float64 [N]: the sum of the older rows' values, which are [N]."""
        running: Floats = np.concatenate([[0.0], np.cumsum(values[self.by_key])])
        return running[self.stop] - running[self.first]


@dataclass(frozen=True)
class Residuals:
    """What `residual_means` finds, float64 [N] each."""

    user_dev: Floats
    """By how much the user's older rows lie above what their items say."""
    item_dev: Floats
    """By how much the item's older rows lie above what their users say."""
    residual: Floats
    """What is left of the row's own value: a feature of later rows, and the label in disguise for the row itself."""


def residual_means(user: Ints, item: Ints, value: Floats, time: Ints, *, prior_mean: float) -> Residuals:
    """Damped means of user and item, each freed of the other's.

    With every sum over the n strictly older rows, and y the `value` (a label or a rating), [N]:

        g        = (sum(y) + 20 prior_mean) / (n + 20)      of all rows
        a        = sum(y - g) / (n + 5)                     of the item
        b        = sum(y - g - a) / (n + 3)                 of the user
        item_dev = sum(y - g - b) / (n + 5)                 of the item
        user_dev = sum(y - g - item_dev) / (n + 3)          of the user
        residual = y - g - item_dev - user_dev

    where an older row brings its own g, a, b and item_dev, those of its moment. A user of nothing but liked films
    thus counts little if everybody likes them. `user`, `item`: any integers, [N]; `time`: [N], ascending;
    `prior_mean`: the mean before the first row.

    Raises:
        DataError: columns of unequal length, rows not sorted by time, or a value that is no finite number.
    """
    _as_many(user=user, item=item, value=value, time=time)
    if (wrong := np.flatnonzero(~np.isfinite(value))).size:
        raise DataError(
            f"point in time: row {wrong[0]} has the value {value[wrong[0]]}, and every later row would have it too. "
            "Leave such rows out"
        )
    everything, of_user, of_item = (Past.of(key, time) for key in (np.zeros(len(time), np.int64), user, item))
    above = value - (everything.sums(value) + OVERALL_ROWS * prior_mean) / (everything.count + OVERALL_ROWS)
    a = of_item.sums(above) / (of_item.count + ITEM_ROWS)
    b = of_user.sums(above - a) / (of_user.count + USER_ROWS)
    item_dev = of_item.sums(above - b) / (of_item.count + ITEM_ROWS)
    user_dev = of_user.sums(above - item_dev) / (of_user.count + USER_ROWS)
    return Residuals(user_dev, item_dev, above - item_dev - user_dev)


def list_means(user: Ints, lists: Lists, residual: Floats, time: Ints) -> Floats:
    """What a user has left over for the row's list values (genres, tags), float64 [N]; 0 for an empty list.

    The mean, over the values in the row's list, of sum(residual) / (n + 3) over the n strictly older rows of the
    user that have the value in theirs. `user`, `time`: [N]; `lists`: integers, N lists; `residual`: [N], of
    `residual_means`.

    Raises:
        DataError: columns of unequal length, or rows not sorted by time.
    """
    _as_many(user=user, lists=lists.lengths, residual=residual, time=time)
    row = np.repeat(np.arange(len(user)), lists.lengths)
    value, users = _codes(lists.values), _codes(user)
    past = Past.of(users[row] * (value.max(initial=0) + 1) + value, time[row])
    each = past.sums(residual[row]) / (past.count + USER_ROWS)
    return np.bincount(row, each, len(user)) / np.maximum(lists.lengths, 1)


def near_means(user: Ints, item: Ints, residual: Floats, time: Ints) -> tuple[Floats, Floats]:
    """What a user has left over for the items near this one, and log(1 + how near they are), float64 [N] each.

    Over the user's strictly older rows j, with s_j the similarity of their item to the row's:

        near_dev  = sum(s_j residual_j) / (sum(s_j) + 0.2)
        near_seen = log(1 + sum(s_j))
        s         = max(0, cosine) x common / (common + 10)

    The cosine is that of the two items' residuals over the users who have both, `common` of them (whoever has an item
    twice counts twice). It is renewed every 1,000 rows, from the rows that are strictly older than the first of
    those. Time and memory: all P pairs of rows of one user are looked at twice (10 million for MovieLens-100K, some
    seconds), those of 1,000 rows at a time; and five tables of items x items. `user`, `item`: any integers, [N];
    `time`: [N]; `residual`: [N], of `residual_means`.

    Raises:
        DataError: columns of unequal length, rows not sorted by time, or more than `MOST_ITEMS` items.
    """
    _as_many(user=user, item=item, residual=residual, time=time)
    past, items = Past.of(user, time), _codes(item)
    near = _Similarity(int(items.max(initial=-1)) + 1)
    place = np.empty(len(user), np.int64)
    place[past.by_key] = np.arange(len(user))
    dev, seen = np.zeros(len(user)), np.zeros(len(user))
    learned = 0
    for start in range(0, len(user), RENEW_ROWS):
        older = int(np.searchsorted(time, time[start]))
        row, other = _pairs(past, place, slice(learned, older))
        near.add(items[row], items[other], residual[row], residual[other])
        learned = older
        block = slice(start, start + RENEW_ROWS)
        row, other = _pairs(past, past.stop, block)
        s = near.of(items[row], items[other])
        total = np.bincount(row - start, s, len(time[block]))
        dev[block] = np.bincount(row - start, s * residual[other], len(time[block])) / (total + NEAR_WEIGHT)
        seen[block] = np.log1p(total)
    return dev, seen


def _pairs(past: Past, stop: NDArray[np.int64], rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[P], [P]: each of the rows beside each row of its key that lies before `stop` in the order of keys."""
    found = Lists(past.by_key, np.zeros(1, np.int64)).cut(past.first[rows], (stop - past.first)[rows])
    return np.repeat(np.arange(len(stop))[rows], found.lengths), found.values.astype(np.int64, copy=False)


class _Similarity:
    """The similarity of each two items, from the pairs of rows of one user seen so far."""

    def __init__(self, items: int) -> None:
        if items > MOST_ITEMS:
            raise DataError(
                f"point in time: near_means got {items:,} items, whose similarities take {40e-9 * items**2:,.0f} GB "
                f"(at most {MOST_ITEMS:,}). Leave it out, or give rare items one id"
            )
        self._items = items
        # Of the smaller and the larger item code: products, squares of each, pairs, and what they make.
        self._dot, self._small, self._large, self._common, self._similarity = np.zeros((5, items * items))

    def add(self, item: Ints, other: Ints, residual: Floats, others: Floats) -> None:
        """Pairs of rows of one user: their items and residuals, [P] each."""
        key = self._key(item, other)
        first_is_small = item <= other
        np.add.at(self._dot, key, residual * others)
        np.add.at(self._small, key, np.where(first_is_small, residual, others) ** 2)
        np.add.at(self._large, key, np.where(first_is_small, others, residual) ** 2)
        np.add.at(self._common, key, 1.0)
        norm, common = np.sqrt(self._small[key] * self._large[key]), self._common[key]
        cosine = np.divide(self._dot[key], norm, out=np.zeros(len(key)), where=norm > 0)
        self._similarity[key] = np.maximum(cosine, 0.0) * common / (common + COMMON_ROWS)

    def of(self, item: Ints, other: Ints) -> Floats:
        """float64 [P]"""
        return self._similarity[self._key(item, other)]

    def _key(self, item: Ints, other: Ints) -> Ints:
        return np.minimum(item, other) * self._items + np.maximum(item, other)


def _as_many(**columns: NDArray[np.generic]) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(column)}" for name, column in columns.items())
        raise DataError(f"point in time: every column is of the same rows, but {lengths}. Give all of one length")


def _codes(key: Ints) -> NDArray[np.int64]:
    """int64 [N]: the same number for the same key, from 0 on."""
    return np.unique(key, return_inverse=True)[1].astype(np.int64, copy=False)


def _changes(values: Ints) -> NDArray[np.bool_]:
    return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])
