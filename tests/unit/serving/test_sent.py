"""What Python's own clients may send, and what is said of what JSON cannot say."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rtrain.errors import DataError
from rtrain.serving.sent import as_json, rows_of, several


def test_values_of_numpy_and_pandas() -> None:
    row = {"a": np.int64(3), "b": np.float32(0.5), "c": np.array([1, 2]), "d": np.bool_(True), "e": pd.NA, "f": pd.NaT}
    wanted = {"a": 3, "b": 0.5, "c": [1, 2], "d": True, "e": None, "f": None}
    assert json.loads(as_json({"rows": [row]})) == {"rows": [wanted]}


def test_rows_are_one_several_or_a_table_in_which_nan_is_missing() -> None:
    one, other = {"a": 1, "b": 0.5}, {"a": 2, "b": None}
    assert rows_of(one) == [one] and rows_of((one, other)) == [one, other]
    assert rows_of(pd.DataFrame([one, other])) == [one, other]
    assert json.loads(as_json({"rows": rows_of(pd.DataFrame({"a": [1], "b": [[1, 2]]}))})) == {
        "rows": [{"a": 1, "b": [1, 2]}]
    }


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rows": [{"a": 1}, {"a": float("nan")}]}, "rows[1].a: JSON has no nan. Send None for what is missing"),
        ({"rows": [{"a": np.float32("inf")}]}, "rows[0].a: JSON has no inf"),
        ({"rows": [{"a": [1, np.array([np.nan])]}]}, "rows[0].a[1][0]: JSON has no nan"),
        ({"context": [{"when": pd.Timestamp(0)}]}, "context[0].when: JSON cannot say a Timestamp, as Timestamp('1970"),
        ({"rows": [{"a": b"x"}]}, "rows[0].a: JSON cannot say a bytes, as b'x'"),
        ({"rows": [{("a",): 1}]}, "the request has what JSON cannot say (keys must be"),
    ],
)
def test_what_json_cannot_say_is_told_by_its_place(body: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as refused:
        as_json(body)
    assert said in str(refused.value)


def test_what_is_not_several() -> None:
    for values in (196, "u1", None, {"a": 1}):
        with pytest.raises(DataError, match="whom: those who ask, got "):
            several(values, "whom", "those who ask")
    for rows in ("row", 3):
        with pytest.raises(DataError, match="rows: one row or several, each a dict by feature, got "):
            rows_of(rows)
