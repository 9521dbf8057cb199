from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.data.interactions import Interactions
from rtrain.data.parquet import ParquetRows
from rtrain.data.split import ByTime
from rtrain.errors import ConfigError, DataError
from rtrain.schema import Schema

Write = Callable[..., str]
Make = Callable[..., pa.Table]


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("group", [7, 100, 1000])
def test_no_moment_is_on_two_sides(write: Write, files: int, group: int, make: Make) -> None:
    rows = ParquetRows(write(1000, group=group, files=files))
    time = make(1000).column("time").to_numpy()
    ranges = ByTime(valid=0.15, test=0.1).ranges(rows, "time")
    (zero, valid), (same_valid, test), (same_test, stop) = ranges["train"], ranges["valid"], ranges["test"]
    assert (zero, same_valid, same_test, stop) == (0, valid, test, 1000)
    assert time[valid - 1] < time[valid] and time[test - 1] < time[test]
    # The boundary asked for is inside the first moment behind the boundary.
    assert time[750] == time[valid] and time[900] == time[test]


@given(data=st.data())
def test_boundaries_agree_with_a_plain_search(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    count = data.draw(st.integers(3, 60))
    time = np.sort(data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)))
    path = tmp_path_factory.mktemp("split") / "a.parquet"
    pq.write_table(pa.table({"t": time}), path, row_group_size=data.draw(st.integers(1, 20)))
    split = ByTime(valid=0.2, test=0.3)
    test = int(np.searchsorted(time, time[count - max(1, round(count * 0.3))]))
    valid = int(np.searchsorted(time, time[count - round(count * 0.5)]))
    if 0 < valid < test:
        expected = {"train": (0, valid), "valid": (valid, test), "test": (test, count)}
        assert split.ranges(ParquetRows(str(path)), "t") == expected
    else:
        with pytest.raises(DataError, match="leaves no row for"):
            split.ranges(ParquetRows(str(path)), "t")


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64(), pa.timestamp("us", "UTC")])
def test_time_may_be_seconds_or_a_timestamp(write: Write, kind: pa.DataType, make: Make) -> None:
    plain = make(200).column("time")
    expected = ByTime().ranges(ParquetRows(write(200)), "time")
    assert ByTime().ranges(ParquetRows(write(200, time=plain.cast(kind))), "time") == expected


@pytest.mark.parametrize(
    ("files", "row", "shown"), [(1, 457, "rows.parquet: .* row 457"), (2, 700, "part-1.* row 200")]
)
def test_the_first_row_out_of_order_is_named(write: Write, files: int, row: int, shown: str) -> None:
    time = np.arange(1000)
    time[row] = 3
    rows = ParquetRows(write(1000, files=files, time=pa.array(time)))
    with pytest.raises(DataError, match=rf"{shown} has 3 after {row - 1}\. Sort the data by 'time'"):
        ByTime().ranges(rows, "time")


def test_order_is_checked_between_row_groups_and_files(write: Write) -> None:
    time = np.concatenate([np.arange(500) + 1000, np.arange(500)])
    rows = ParquetRows(write(1000, group=100, files=2, time=pa.array(time)))
    with pytest.raises(DataError, match=r"part-1\.parquet: not sorted by 'time': row 0 has 0 after 1499"):
        ByTime().ranges(rows, "time")


@pytest.mark.parametrize("kind", [pa.int64(), pa.timestamp("ms"), pa.timestamp("ns", "UTC")])
def test_footers_that_are_in_order_spare_reading_the_times(
    write: Write, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(1000, group=20, files=2, time=pa.array(np.arange(1000) // 3).cast(kind))
    rows, read = ParquetRows(path), list[int]()
    plain = ParquetRows.read
    monkeypatch.setattr(ParquetRows, "read", lambda self, start, *rest: read.append(start) or plain(self, start, *rest))
    found = ByTime().ranges(rows, "time")
    assert len(read) <= 4, "two ends, each of a moment that may begin a group earlier"
    monkeypatch.setattr(ParquetRows, "spans", lambda self, column: None)
    assert ByTime().ranges(rows, "time") == found
    assert len(read) >= 50


def test_disorder_within_a_row_group_ends_the_start(write: Write, schema: Schema) -> None:
    time = np.arange(1000)
    time[[457, 458]] = time[[458, 457]]
    data = Interactions(source=write(1000, group=100, time=pa.array(time)), schema=schema, leakage="allow").open()
    with pytest.raises(DataError, match=r"rows\.parquet: not sorted by 'time': row 458 has 457 after 458\. Sort"):
        data.refuse_rows()


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_time_is_named(write: Write, missing: float | None) -> None:
    time: list[float | None] = [float(x) for x in range(300)]
    time[123] = missing
    rows = ParquetRows(write(300, time=pa.array(time, pa.float64(), from_pandas=False)))
    with pytest.raises(DataError, match=r"rows\.parquet: 'time' is missing at row 123"):
        ByTime().ranges(rows, "time")


def test_a_time_that_is_no_number_is_refused(write: Write) -> None:
    rows = ParquetRows(write(10, time=pa.array(["a"] * 10)))
    with pytest.raises(DataError, match="the time column 'time' is string; it must be seconds"):
        ByTime().ranges(rows, "time")


def test_an_empty_split_is_refused(write: Write) -> None:
    rows = ParquetRows(write(1000, time=pa.array([5] * 1000)))
    with pytest.raises(DataError, match="split by 'time' leaves no row for train"):
        ByTime().ranges(rows, "time")
    rows = ParquetRows(write(2))
    with pytest.raises(DataError, match=r"leaves no row for .*too few rows \(2\)"):
        ByTime().ranges(rows, "time")


@pytest.mark.parametrize(("valid", "test"), [(0.0, 0.1), (0.1, 0.0), (0.6, 0.4), (-0.1, 0.1), (0.1, 1.0)])
def test_fractions_that_cannot_be_are_refused(valid: float, test: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.split: valid and test must be above 0 and their sum below 1, got"):
        ByTime(valid=valid, test=test)


def test_a_split_by_time_needs_a_time(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"schema\.time: it is empty"):
        ByTime().ranges(ParquetRows(write(10)), "")
