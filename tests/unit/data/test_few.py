"""Few rows' plain columns are read side by side: the same values, and the same words where one does not fit."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.data.encode import encode
from rtrain.data.few import FEW, of_few
from rtrain.encodings import Quantiles
from rtrain.errors import DataError
from rtrain.schema import Dense, Id, IdList, Label, Schema

SCHEMA = Schema(
    features=(
        Dense(name="plain", mean=3.0, std=0.7),
        Id(name="user", rows=100),
        Dense(name="filled", missing=-1.5),
        Id(name="word", vocabulary=("a", "b")),
        Dense(name="ranked", encoding=Quantiles(edges=(0.0, 1.0, 4.0))),
        Id(name="hashed", rows=50, hashed="numbers"),
        IdList(name="seen", rows=9, max_length=3),
        Id(name="item", rows=7),
    ),
    label=Label(name="label"),
    group="user",
)
COLUMNS = SCHEMA.arrow(label=False)
NUMBERS = st.floats() | st.floats(-9, 9)
ROWS = st.fixed_dictionaries(
    {
        "plain": NUMBERS,
        "filled": st.none() | NUMBERS,
        "ranked": NUMBERS,
        "user": st.integers(0, 99) | st.integers(-1, 100),
        "item": st.none() | st.integers(0, 6),
        "word": st.none() | st.sampled_from("abc"),
        "hashed": st.none() | st.integers(-(2**63), 2**63 - 1),
        "seen": st.lists(st.integers(0, 8), max_size=3),
    }
)


def read(table: pa.Table, fits: pa.Schema | None) -> Any:
    """What `encode` makes of it, or what it says."""
    try:
        found = encode(table, SCHEMA, label=False, where="request", first_row=0, fits=fits)
    except DataError as error:
        return str(error)
    return found.dense.tolist(), found.singles.tolist(), str(found.singles.dtype), found.group.tolist()


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_it_is_as_column_by_column(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, COLUMNS)
    assert read(table, COLUMNS) == read(table, None)


GOOD = {"plain": 1.0, "filled": 2.0, "ranked": 0.5, "user": 5, "item": 3, "word": "a", "hashed": 8, "seen": [1]}


@pytest.mark.parametrize(
    ("changed", "left_out"),
    [
        ({}, set()),
        ({"filled": None}, {"filled"}),
        ({"plain": 1e300, "ranked": float("nan")}, {"plain", "ranked"}),
        ({"user": 100}, {"user", "item"}),
        ({"item": None}, {"user", "item"}),
    ],
)
def test_what_does_not_fit_is_left_out(changed: dict[str, Any], left_out: set[str]) -> None:
    table = pa.Table.from_pylist([GOOD, GOOD | changed], COLUMNS)
    numbers, ids = of_few(table, SCHEMA)
    assert {*numbers, *ids} == {"plain", "filled", "ranked", "user", "item"} - left_out


def test_of_many_rows_it_is_the_same() -> None:
    rows = [GOOD | {"plain": float(n), "user": n % 100} for n in range(FEW + 1)]
    many, few = (read(pa.Table.from_pylist(rows[:count], COLUMNS), COLUMNS) for count in (FEW + 1, FEW))
    assert [part[:FEW] for part in many if not isinstance(part, str)] == [p for p in few if not isinstance(p, str)]
