"""Each feature against a plain loop over the rows, and no row told of its own time or later."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from rtrain.data import movielens, point_in_time
from rtrain.data.columns import Lists
from rtrain.data.movielens_features import RESIDUALS
from rtrain.data.point_in_time import Past, list_means, near_means, residual_means
from rtrain.errors import DataError

ROWS, RENEW = 400, 30
PRIOR = 3.5
SAME = 1e-9
"""Running sums round at 1e-13 of their size."""


@dataclass
class Events:
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.int64]
    tags: list[list[int]]

    @property
    def lists(self) -> Lists:
        flat = np.array([tag for tags in self.tags for tag in tags], np.int64)
        return Lists.of(flat, np.array([len(tags) for tags in self.tags]))

    def features(self) -> dict[str, NDArray[np.float64]]:
        means = residual_means(self.user, self.item, self.value, self.time, prior_mean=PRIOR)
        dev, seen = near_means(self.user, self.item, means.residual, self.time)
        return {
            "user_dev": means.user_dev,
            "item_dev": means.item_dev,
            "residual": means.residual,
            "list": list_means(self.user, self.lists, means.residual, self.time),
            "near_dev": dev,
            "near_seen": seen,
        }


def made(seed: int = 0, rows: int = ROWS) -> Events:
    """Ratings of 12 users and 25 items with gaps between their ids, each pair once, several rows a second."""
    draw = np.random.default_rng(seed)
    pairs = draw.permutation(12 * 40)[:rows]
    tags = [draw.choice(7, draw.integers(0, 4), replace=False).tolist() for _ in range(rows)]
    time = np.sort(draw.integers(0, rows // 3, rows))
    return Events(pairs // 40 * 5 + 100, pairs % 40 * 3 - 7, draw.integers(1, 6, rows).astype(float), time, tags)


@pytest.fixture(autouse=True)
def renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_in_time, "RENEW_ROWS", RENEW)


def moments(events: Events) -> Iterator[list[int]]:
    """The rows of each second."""
    for _, rows in groupby(range(len(events.time)), key=lambda row: events.time[row]):
        yield list(rows)


def by_loop(events: Events) -> dict[str, list[float]]:
    """The formulas of the docstrings, second by second: a row's values are stored once its second is over."""
    found: dict[str, list[float]] = defaultdict(list)
    older: list[dict[str, float]] = []
    of_user: dict[int, list[int]] = defaultdict(list)
    of_item: dict[int, list[int]] = defaultdict(list)
    for rows in moments(events):
        for row in rows:
            user, item, y = events.user[row], events.item[row], events.value[row]
            users, items = [older[r] for r in of_user[user]], [older[r] for r in of_item[item]]
            above = y - (sum(o["y"] for o in older) + 20 * PRIOR) / (len(older) + 20)
            a = sum(o["above"] for o in items) / (len(items) + 5)
            b = sum(o["above"] - o["a"] for o in users) / (len(users) + 3)
            item_dev = sum(o["above"] - o["b"] for o in items) / (len(items) + 5)
            user_dev = sum(o["above"] - o["item_dev"] for o in users) / (len(users) + 3)
            values = {"y": y, "above": above, "a": a, "b": b, "item_dev": item_dev, "user_dev": user_dev}
            for name, value in (values | {"residual": above - item_dev - user_dev}).items():
                found[name].append(value)
            means = []
            for tag in events.tags[row]:
                same = [found["residual"][r] for r in of_user[user] if tag in events.tags[r]]
                means.append(sum(same) / (len(same) + 3))
            found["list"].append(sum(means) / max(len(means), 1))
            near = similarity_by_loop(events, found["residual"], row // RENEW * RENEW)
            s = [near.get(frozenset((item, events.item[r])), 0.0) for r in of_user[user]]
            residuals = [found["residual"][r] for r in of_user[user]]
            weighted = sum(w * r for w, r in zip(s, residuals, strict=True))
            found["near_dev"].append(weighted / (sum(s) + 0.2))
            found["near_seen"].append(math.log(1 + sum(s)))
        for row in rows:
            older.append({name: values[row] for name, values in found.items()})
            of_user[events.user[row]].append(row)
            of_item[events.item[row]].append(row)
    return found


def similarity_by_loop(events: Events, residual: list[float], start: int) -> dict[frozenset[int], float]:
    """Of each two items with a common user, from the rows older than row `start`."""
    known: dict[int, dict[int, float]] = defaultdict(dict)
    for row in range(start):
        if events.time[row] < events.time[start]:
            known[events.item[row]][events.user[row]] = residual[row]
    found = {}
    for one, other in combinations(known, 2):
        common = known[one].keys() & known[other].keys()
        if common:
            x, y = ([known[item][user] for user in common] for item in (one, other))
            cosine = sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
            found[frozenset((one, other))] = max(0.0, cosine) * len(common) / (len(common) + 10)
    return found


def test_each_feature_agrees_with_a_plain_loop() -> None:
    events = made()
    expected = by_loop(events)
    for name, values in events.features().items():
        assert values.dtype == np.float64 and values.shape == (ROWS,)
        assert values == pytest.approx(expected[name], abs=SAME), name
        assert len(np.unique(values.round(9))) > ROWS / 2, f"{name} says little of these rows"


@pytest.mark.parametrize("row", [0, 17, 149, 150, 399])
def test_a_changed_value_moves_no_feature_of_its_second_or_earlier(row: int) -> None:
    events = made()
    before = events.features()
    events.value[row:] = 6 - events.value[row:] + np.random.default_rng(1).random(ROWS - row)
    own = int(np.searchsorted(events.time, events.time[row], "right"))
    after = events.features()
    assert after.pop("residual")[row] != before.pop("residual")[row]  # which holds the row's own value
    for name, values in after.items():
        assert values[:own] == pytest.approx(before[name][:own], abs=SAME), name
        if own < ROWS // 2:
            assert np.abs(values[own:] - before[name][own:]).max() > 0.01, f"{name} does not see older rows"


def test_the_films_labels_of_tomorrow_move_no_column_of_today(ml100k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_in_time, "RENEW_ROWS", 1_000)
    table = pq.read_table(ml100k)
    changed, label = 85_000, table["label"].to_numpy().copy()
    label[changed:] = 1 - label[changed:]
    rating = table["rating"].to_numpy().copy()
    rating[changed:] = 6 - rating[changed:]
    place = table.column_names.index("rating")
    other = table.set_column(place, "rating", pa.array(rating))
    earlier = int(np.searchsorted(table["timestamp"].to_numpy(), table["timestamp"][changed].as_py(), "right"))
    for name, column in movielens.residual_columns(other, label, table["genres"]).items():
        old, new = table[name].to_numpy(), column.to_numpy()
        assert np.abs(new[:earlier] - old[:earlier]).max() <= SAME, name
        assert np.abs(new[earlier:] - old[earlier:]).max() > 0.1, name


def test_the_columns_of_movielens_have_the_spread_that_the_schema_divides_by(ml100k: Path) -> None:
    assert sorted(f.name for f in RESIDUALS) == sorted(movielens.RESIDUAL_COLUMNS)
    table = pq.read_table(ml100k).slice(0, 80_000)
    for feature in RESIDUALS:
        values = (table[feature.name].to_numpy() - feature.mean) / feature.std
        assert abs(values.mean()) < 0.2 and values.std() == pytest.approx(1, abs=0.05), feature.name


def test_what_an_item_was_given_twice_by_one_user_counts_as_two_users(monkeypatch: pytest.MonkeyPatch) -> None:
    user, time = np.array([1, 1, 1, 1]), np.arange(4)
    item, residual = np.array([5, 5, 9, 5]), np.array([1.0, 2.0, 1.0, 0.0])
    monkeypatch.setattr(point_in_time, "RENEW_ROWS", 1)
    dev, seen = near_means(user, item, residual, time)
    # Before the last row: item 5 beside itself, one pair (1, 2); item 5 beside 9, two pairs of cosine 3 / sqrt(5 x 2).
    own, other = 1 / 11, 3 / math.sqrt(10) * 2 / 12
    assert seen[3] == pytest.approx(math.log(1 + 2 * own + other))
    assert dev[3] == pytest.approx((3 * own + other) / (2 * own + other + 0.2))
    assert seen[:2].tolist() == [0, 0]


def test_rows_that_know_nothing_get_zeros_and_no_rows_get_none() -> None:
    for rows in (1, 0):
        events = made(rows=3)
        events = Events(*(x[:rows] for x in (events.user, events.item, events.value, events.time)), events.tags[:rows])
        found = events.features()
        assert found.pop("residual").tolist() == (events.value - PRIOR).tolist()
        assert {name: values.tolist() for name, values in found.items()} == {name: [0.0] * rows for name in found}


def test_what_cannot_be_used_is_refused_in_a_line() -> None:
    one = np.ones(3, np.int64)
    with pytest.raises(DataError, match="point in time: row 2 is older than the row before it. Sort the rows by time"):
        Past.of(one, np.array([1, 5, 4]))
    with pytest.raises(DataError, match="row 1 has the value nan, and every later row would have it too. Leave such"):
        residual_means(one, one, np.array([1.0, np.nan, np.inf]), one, prior_mean=0)
    many = np.arange(point_in_time.MOST_ITEMS + 1)
    with pytest.raises(DataError, match=r"near_means got 5,001 items, whose similarities take 1 GB \(at most 5,000\)"):
        near_means(many, many, many.astype(float), many)


def test_columns_of_unequal_length_are_refused() -> None:
    rows = np.arange(4)
    for work in (
        lambda: residual_means(rows[:-1], rows, rows * 1.0, rows, prior_mean=0.5),
        lambda: near_means(rows, rows, rows[:-1] * 1.0, rows),
        lambda: list_means(rows, Lists.of(rows[:2], np.ones(2, np.int64)), rows * 1.0, rows),
    ):
        with pytest.raises(DataError, match="every column is of the same rows, but user has [34], .*Give all of one"):
            work()
