import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.parquet import ParquetRows
from rtrain.errors import DataError

Write = Callable[..., str]
Make = Callable[..., pa.Table]


@pytest.mark.parametrize("files", [1, 3])
def test_any_range_of_rows_is_what_the_table_has(write: Write, files: int, make: Make) -> None:
    rows = ParquetRows(write(1000, group=70, files=files))
    table = make(1000)
    assert rows.rows == 1000 and rows.schema.names == table.column_names
    for start, stop in [(0, 1000), (0, 1), (69, 71), (332, 335), (999, 1000), (140, 700), (5, 5), (1000, 1000)]:
        assert rows.read(start, stop).equals(table.slice(start, stop - start))
        assert rows.read(start, stop, ["item", "age"]).equals(table.slice(start, stop - start).select(["item", "age"]))


def test_row_groups_count_through_the_files(write: Write) -> None:
    rows = ParquetRows(write(300, group=60, files=2))
    assert [(g.first_row, g.rows, g.file, g.index, g.file_row) for g in rows.row_groups] == [
        (0, 60, 0, 0, 0),
        (60, 60, 0, 1, 60),
        (120, 30, 0, 2, 120),
        (150, 60, 1, 0, 0),
        (210, 60, 1, 1, 60),
        (270, 30, 1, 2, 120),
    ]
    assert [g.first_row for g in rows.groups(61, 211)] == [60, 120, 150, 210]
    assert rows.name(rows.row_groups[3]) == "part-1.parquet"


def test_it_reads_from_other_storage(make: Make) -> None:
    with fsspec.open("memory://bucket/set/a.parquet", "wb") as file:
        pq.write_table(make(50), file)
    rows = ParquetRows("memory://bucket/set")
    assert rows.read(10, 20).equals(make(50).slice(10, 10))


def test_hidden_and_other_files_of_a_folder_are_left_out(write: Write) -> None:
    folder = Path(write(100, files=2))
    for name in ("_SUCCESS", ".part.parquet.tmp", "_metadata.parquet", "readme.txt"):
        (folder / name).write_text("x")
    assert len(ParquetRows(str(folder)).files) == 2


def test_files_may_order_their_columns_differently(tmp_path: Path, make: Make) -> None:
    table = make(10)
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.select(table.column_names[::-1]), tmp_path / "b.parquet")
    assert ParquetRows(str(tmp_path)).read(10, 20).equals(table)


def test_the_fingerprint_follows_the_data_and_not_its_folder(write: Write, tmp_path: Path, make: Make) -> None:
    path = Path(write(500))
    first = ParquetRows(str(path)).fingerprint()
    assert len(first) == 16 and first == ParquetRows(str(path)).fingerprint()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path.rename(moved / path.name)
    assert ParquetRows(str(moved)).fingerprint() == first
    pq.write_table(make(500, seed=1), path)
    assert ParquetRows(str(path)).fingerprint() != first


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.parquet: no such file or folder\. Check data\.source"):
        ParquetRows(str(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match=r"the folder has no \.parquet file directly in it"):
        ParquetRows(str(tmp_path))
    with pytest.raises(DataError, match="this storage cannot be used"):
        ParquetRows("nosuch://bucket/rows.parquet")


def test_an_empty_file_is_refused(tmp_path: Path, make: Make) -> None:
    pq.write_table(make(1).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="there are no rows in it"):
        ParquetRows(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"user,item\n1,2\n" * 10])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file\. Convert it"):
        ParquetRows(str(tmp_path))


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(write: Write, kept: float) -> None:
    path = Path(write(1000))
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(DataError, match=r"rows\.parquet: truncated: its \d+ bytes do not end as Parquet does"):
        ParquetRows(str(path))


def test_a_damaged_footer_is_refused(write: Write) -> None:
    path = Path(write(1000))
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length : -8] = b"\xff" * length
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"rows\.parquet: cannot be read \(.*\)\. If it is damaged, copy or write it again"
    ):
        ParquetRows(str(path))


def test_a_damaged_page_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": range(10_000)}), path, write_page_checksum=True, compression="none")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    rows = ParquetRows(str(path))
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read \(.*CRC"):
        rows.read(0, 10_000)


def test_a_file_that_vanishes_is_named(write: Write) -> None:
    path = Path(write(100))
    rows = ParquetRows(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"rows\.parquet: no such file"):
        rows.read(0, 1)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([1], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": pa.array([1], pa.int32())}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'x' is int32, but int64 in .*a\.parquet"):
        ParquetRows(str(tmp_path))
    pq.write_table(pa.table({"y": pa.array([1], pa.int64())}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'x' is missing, but int64 in"):
        ParquetRows(str(tmp_path))


def test_rows_and_columns_that_are_not_there_are_refused(write: Write) -> None:
    rows = ParquetRows(write(100))
    with pytest.raises(DataError, match=r"rows 90\.\.100 are asked for, but it has rows 0\.\.99"):
        rows.read(90, 101)
    with pytest.raises(DataError, match="column 'itm' is missing; did you mean 'item'"):
        rows.read(0, 1, ["itm"])
