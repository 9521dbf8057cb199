"""The sampled rows of MovieLens-100K for two tasks, from the real ratings."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rtrain.data import clicks
from rtrain.data.cached import is_current


@pytest.fixture(scope="module")
def made(ml100k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clicks") / "clicks.parquet"
    clicks.sample(ml100k, out)
    return out


def test_each_rating_stands_beside_a_film_never_rated_at_the_same_moment(made: Path, ml100k: Path) -> None:
    assert is_current(made, clicks.VERSION)
    table, ratings = pq.read_table(made), pq.read_table(ml100k)
    user, item, time, click = (table[c].to_numpy() for c in ("user_id", "item_id", "timestamp", "click"))
    assert (np.diff(time) >= 0).all()
    rated = set(zip(ratings["user_id"].to_pylist(), ratings["item_id"].to_pylist(), strict=True))
    pairs = list(zip(user.tolist(), item.tolist(), strict=True))
    assert {p for p, c in zip(pairs, click, strict=True) if c == 1} == rated
    assert not {p for p, c in zip(pairs, click, strict=True) if c == 0} & rated
    for value in (0, 1):
        here = np.sort(user[click == value] * 2**32 + time[click == value])
        assert (here == np.sort(ratings["user_id"].to_numpy() * 2**32 + ratings["timestamp"].to_numpy())).all()
    assert table["like"].is_null().to_numpy().tolist() == (click == 0).tolist()
    assert table["like"].drop_null().to_numpy().sum() == (ratings["rating"].to_numpy() >= 4).sum()
    drawn = np.bincount(item[click == 0], minlength=1683)
    assert drawn[0] == 0 and drawn[1:].min() > 0  # uniform: some 59 draws a film


def test_what_a_drawn_film_brings_was_known_before_that_moment(made: Path, ml100k: Path) -> None:
    table, ratings = pq.read_table(made), pq.read_table(ml100k)
    item, time, label = (ratings[c].to_numpy() for c in ("item_id", "timestamp", "label"))
    about = {i: (g, y) for i, g, y in zip(*(ratings[c].to_pylist() for c in clicks.OF_ITEM[:3]), strict=True)}
    random = np.random.default_rng(0)
    for row in table.take(np.sort(random.choice(table.num_rows, 300, replace=False))).to_pylist():
        before = (item == row["item_id"]) & (time < row["timestamp"])
        assert row["item_seen"] == pytest.approx(np.log1p(before.sum()))
        assert row["item_liked"] == pytest.approx((label[before].sum() + 2.5) / (before.sum() + 5))
        assert (row["genres"], row["release_year"]) == about[row["item_id"]]


def test_the_same_ratings_give_the_same_rows(made: Path, ml100k: Path, tmp_path: Path) -> None:
    clicks.sample(ml100k, tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(made))
