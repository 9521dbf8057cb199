"""Requests as a table: what a column cannot hold is refused by its name, and nothing is cut off."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rtrain.export.flat import Requests

WANTED = pa.schema([("user", pa.int64()), ("seen", pa.list_(pa.int64())), ("age", pa.float32()), ("word", pa.string())])


def test_what_fits_is_held_and_what_is_missing_is_null() -> None:
    rows: list[dict[str, Any]] = [
        {"user": 2.0, "seen": np.array([1, 2]), "age": 1.5, "word": "a", "more": 1},
        {"seen": None},
        {"seen": [np.float32(3.0), None], "user": 2**63 - 1},
    ]
    assert Requests(WANTED).table(rows).to_pylist() == [
        {"user": 2, "seen": [1, 2], "age": 1.5, "word": "a"},
        {"user": None, "seen": None, "age": None, "word": None},
        {"user": 2**63 - 1, "seen": [3, None], "age": None, "word": None},
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"user": 1.5}, "user: 1.5 is no whole number"),
        ({"user": np.float32(0.5)}, "user: 0.5 is no whole number"),
        ({"user": float("inf")}, "user: "),
        ({"user": float("nan")}, "user: "),
        ({"user": 2**64}, "user: Python int too large"),
        ({"user": True}, "user: Expected integer, got bool"),
        ({"seen": [1, 2.5]}, "seen: 2.5 is no whole number"),
        ({"seen": [[1], 2]}, "seen: Could not convert [1] with type list"),
        ({"age": "old"}, "age: Could not convert 'old'"),
        ({"word": 3}, "word: "),
    ],
)
def test_what_does_not_fit_is_refused_by_its_column(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Requests(WANTED).table([{}, row])
    assert str(caught.value).startswith(said)
