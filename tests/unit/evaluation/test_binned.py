"""Numbers in bins: each row in one, as plain Python puts it there by the bin's own name."""

import math
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.coded import coded
from rtrain.data.interactions import Interactions
from rtrain.evaluation.columns import Columns, slices_of
from rtrain.metrics.names import is_of_slice, metric_of
from rtrain.metrics.state import Scored
from rtrain.schema import Dense, Id, Schema

Rows = Sequence[float | None]


def columns_of(values: pa.Array) -> Columns:
    table = pa.table({"c": values})
    held: Any = SimpleNamespace(
        coded=lambda split, names: coded(table.select(list(names))), numbers=lambda split: range(len(values))
    )
    return Columns(held, "test")


def binned(values: pa.Array) -> dict[str, list[int]]:
    """Name -> numbers of its rows."""
    columns, rows = columns_of(values), np.arange(len(values))
    nothing = np.zeros(len(values))
    scored = Scored(nothing, nothing, rows, rows)
    return {one.name: one.of(scored, columns).rows.tolist() for one in slices_of(("c",), columns)}


def says(name: str) -> Callable[[float | None], bool]:
    """Whether a value is in the bin, by nothing but its name."""
    if name == "[c=(null)]":
        return lambda value: value is None or math.isnan(value)
    low, high = re.search(r"\[(?:(\S+)<)?c<=", name), re.search(r"c<=(\S+)\]", name)
    above = re.search(r"\[c>(\S+)\]", name)
    least = float(above[1]) if above else float(low[1]) if low and low[1] else -math.inf
    most = float(high[1]) if high else math.inf
    first = not above and not (low and low[1])
    return lambda value: value is not None and (value > least or (first and value == least)) and value <= most


DRAW = np.random.default_rng(0)
CASES: dict[str, pa.Array] = {
    "normal": pa.array(DRAW.normal(size=997)),
    "prices": pa.array(np.round(DRAW.lognormal(3, 1, 400), 2)),
    "float32": pa.array(DRAW.normal(size=300).astype(np.float32)),
    "tiny": pa.array(DRAW.normal(size=300) * 1e-300),
    "huge": pa.array(DRAW.normal(size=300) * 1e300),
    "nulls": pa.array([None if x < 0.3 else float(x) for x in DRAW.random(500)]),
    "nan and null": pa.array([None, math.nan, *DRAW.random(200)], from_pandas=False),
    "mostly zero": pa.array(np.maximum(0, DRAW.normal(size=500) - 1)),
    "signed zero and ends": pa.array([0.0, -0.0, math.inf, -math.inf, *range(9)] * 5),
    "neighbours": pa.array(1 + np.arange(300) * 2.0**-52),
    "whole": pa.array(DRAW.integers(-50, 1000, 700)),
    "whole with nulls": pa.array([None, *range(60)], pa.int16()),
    "unsigned": pa.array(DRAW.integers(0, 1 << 30, 100), pa.uint32()),
}


@pytest.mark.parametrize("case", CASES)
def test_every_row_is_in_the_one_bin_that_names_it(case: str) -> None:
    values = CASES[case]
    found, rows = binned(values), values.to_pylist()
    assert sorted(n for numbers in found.values() for n in numbers) == list(range(len(rows)))
    assert 2 <= len([name for name in found if "null" not in name]) <= 5
    for name, numbers in found.items():
        inside = says(name)
        assert numbers == [n for n, value in enumerate(rows) if inside(value)] and numbers, name
        assert is_of_slice(f"auc{name}") and type(metric_of(f"auc{name}")).__name__ == "AUC"


def test_bins_have_about_as_many_rows_and_short_edges() -> None:
    for case in ("normal", "prices", "float32", "neighbours"):
        found = binned(CASES[case])
        sizes = [len(numbers) for numbers in found.values()]
        assert len(sizes) == 5 and max(sizes) - min(sizes) <= 0.02 * sum(sizes) + 1, (case, sizes)
    edges = re.findall(r"<=(\S+)\]", " ".join(binned(CASES["normal"])))
    assert all(len(edge.strip("-0.")) <= 4 for edge in edges) and len(edges) == 4, edges
    assert list(binned(pa.array([float(n) for n in range(100)]))) == [
        "[c<=19]", "[19<c<=39]", "[39<c<=59]", "[59<c<=79]", "[c>79]",
    ]  # fmt: skip
    whole = [12.25] * 40 + [30.0] * 40 + [31.0, 32.0, 33.0, 34.0]
    assert {name: len(numbers) for name, numbers in binned(pa.array(whole)).items()} == {
        "[c<=20]": 40, "[20<c<=30]": 40, "[c>30]": 4
    }  # fmt: skip


def test_few_different_numbers_and_what_is_no_number_stay_as_they_are() -> None:
    assert set(binned(pa.array([0.0, 1.0, 1.0, math.nan, None]))) == {"[c=0.0]", "[c=1.0]", "[c=nan]", "[c=(null)]"}
    assert set(binned(pa.array([1, 2, 3] * 9))) == {"[c=1]", "[c=2]", "[c=3]"}
    assert len(binned(pa.array(range(20)))) == 20 and len(binned(pa.array(range(21)))) == 5
    assert len(binned(pa.array([str(n) for n in range(40)]))) == 21
    assert set(binned(pa.array([None, None], pa.float64()))) == {"[c=(null)]"}
    assert set(binned(pa.array([True, False] * 30))) == {"[c=True]", "[c=False]"}


def test_the_schema_decides_what_is_an_id(tmp_path: Any) -> None:
    rows = 600
    draw = np.random.default_rng(0)
    columns = {name: draw.integers(0, 50, rows) for name in ("user", "item", "age", "beside")}
    columns |= {"price": draw.normal(size=rows), "time": np.arange(rows), "label": draw.integers(0, 2, rows)}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    ids = (Id(name="user", rows=50), Id(name="item", rows=50))
    schema = Schema(features=(*ids, Dense(name="age"), Dense(name="price")), group="user", time="time")
    columns_of_test = Columns(Interactions(source=str(tmp_path / "rows.parquet"), schema=schema).open(), "test")
    found = {name: len(slices_of((name,), columns_of_test)) for name in columns}
    assert found == {"user": 21, "item": 21, "age": 5, "beside": 5, "price": 5, "time": 5, "label": 2}
