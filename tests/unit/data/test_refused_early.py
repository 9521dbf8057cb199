"""Rows that cannot be used end a run before anything is trained, in whichever split they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rtrain
from recipes import bpr_movielens
from rtrain import ByTime, Dense, Id, IdSequence, Interactions, Schema
from rtrain.errors import ConfigError, DataError

ROWS = 400
SCHEMA = Schema(
    features=(
        Id(name="user", rows=9),
        Dense(name="price"),
        IdSequence(name="history", rows=9, max_length=8, times="history_times"),
    ),
    time="time",
)


def columns() -> dict[str, list[Any]]:
    return {
        "user": [n % 9 for n in range(ROWS)],
        "price": [float(n) for n in range(ROWS)],
        "history": [[1, 2, 3]] * ROWS,
        "history_times": [[n, n + 1, n + 2] for n in range(ROWS)],
        "time": [n + 10 for n in range(ROWS)],
        "label": [float(n % 2) for n in range(ROWS)],
    }


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("history_times", [1, 2], "feature 'history' has 3 ids at row 395, but 2 times"),
        ("history_times", [3, 2, 1], "row 395"),
        ("price", float("nan"), "row 395"),
        ("label", None, "row 395"),
    ],
)
@pytest.mark.parametrize("window", [1 << 20, 64])
def test_a_bad_row_of_the_test_split(column: str, value: Any, said: str, window: int, tmp_path: Path) -> None:
    """Of splits beyond the window those are not read before: here the one that trains, which is whole."""
    rows = columns()
    rows[column][395] = value
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    data = Interactions(
        source=str(tmp_path / "rows.parquet"), schema=SCHEMA, split=ByTime(valid=0.1, test=0.1), window_rows=window
    ).open()
    with pytest.raises(DataError) as refused:
        data.refuse_rows()
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("order", ["falling", "shuffled"])
def test_times_in_no_order_are_what_is_told(order: str, tmp_path: Path) -> None:
    rows = pa.table(columns())
    at = np.arange(ROWS)[::-1] if order == "falling" else np.random.default_rng(0).permutation(ROWS)
    pq.write_table(rows.take(at), tmp_path / "rows.parquet")
    data = Interactions(source=str(tmp_path / "rows.parquet"), schema=SCHEMA, split=ByTime(valid=0.1, test=0.1))
    with pytest.raises(DataError, match="not sorted by 'time'"):
        data.open().refuse_rows()


def test_more_drawn_candidates_than_items(tmp_path: Path) -> None:
    drawn = (rtrain.NDCG(k=10, sampled=5000),)
    run = rtrain.override(
        bpr_movielens.debug(),
        {"metrics": drawn, "evaluation.monitor": drawn[0].name, "storage": str(tmp_path), "handoff.export": False},
    )
    with pytest.raises(ConfigError, match="sampled=5000 candidates of 1682 items"):
        rtrain.train(run, launcher="inline", quiet=True)
    assert not list(tmp_path.iterdir())
