import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

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


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "it is empty"), (b"user,item\n1,2\n" * 10, r"not a Parquet file\. Convert it")]
)
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.parquet: {said}"):
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
    pq.write_table(pa.table({"x": pa.array([1], pa.float32())}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'x' is float, but int64 in .*a\.parquet"):
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


def hive(folder: Path, make: Make, days: tuple[str, ...] = ("2026-11-25", "2026-11-26")) -> pa.Table:
    """Twenty rows a file in `day=.../hour=.../`, two hours a day; what a reader is to find."""
    found = dict[str, pa.Table]()
    for number, (day, hour) in enumerate((day, hour) for day in days for hour in (3, 14)):
        place = folder / f"day={day}" / f"hour={hour}"
        place.mkdir(parents=True)
        table = make(20, seed=number)
        pq.write_table(table, place / "part-0.parquet", row_group_size=8)
        table = table.append_column("day", pa.repeat(pa.scalar(unquote(day)), 20))
        found[str(place)] = table.append_column("hour", pa.repeat(pa.scalar(hour), 20))
    return pa.concat_tables([found[place] for place in sorted(found)])  # by names, in which 14 is before 3


def test_columns_may_stand_in_the_names_of_folders(tmp_path: Path, make: Make) -> None:
    wanted = hive(tmp_path / "set", make)
    rows = ParquetRows(str(tmp_path / "set"))
    assert rows.schema.names == wanted.column_names and rows.schema.field("hour").type == pa.int64()
    assert rows.read(0, 80).equals(wanted)
    for start, stop in ((0, 3), (15, 47), (79, 80)):
        assert rows.read(start, stop, ["hour", "item"]).equals(
            wanted.slice(start, stop - start).select(["hour", "item"])
        )
        assert rows.read(start, stop, ["day"]).equals(wanted.slice(start, stop - start).select(["day"]))
    assert rows.name(rows.row_groups[0]) == "day=2026-11-25/hour=14/part-0.parquet"
    spans = rows.spans("hour")
    assert spans is not None and spans[0] == (14, 14) and spans[3] == (3, 3)


def test_folders_of_columns_on_other_storage_are_listed_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (1, 2):
        with fsspec.open(f"memory://lake/day={day}/a.parquet", "wb") as file:
            pq.write_table(make(5, seed=day), file)
    fs, listed = fsspec.filesystem("memory"), list[str]()
    plain = type(fs).find
    monkeypatch.setattr(type(fs), "find", lambda self, path, **how: listed.append(path) or plain(self, path, **how))
    rows = ParquetRows("memory://lake")
    assert rows.read(0, 10, ["day"])["day"].to_pylist() == [1] * 5 + [2] * 5
    rows.read(3, 7)
    assert listed == ["/lake"]


def test_another_partition_of_the_same_file_is_other_data(tmp_path: Path, make: Make) -> None:
    hive(tmp_path / "one", make, ("1",))
    hive(tmp_path / "two", make, ("2",))
    one, two = (ParquetRows(str(tmp_path / name)) for name in ("one", "two"))
    assert one.fingerprint() != two.fingerprint()


def test_a_partition_may_be_missing_empty_or_spelled(tmp_path: Path, make: Make) -> None:
    hive(tmp_path, make, ("__HIVE_DEFAULT_PARTITION__", "a%20b"))
    (tmp_path / "day=c").mkdir()
    (tmp_path / "day=d" / "hour=1").mkdir(parents=True)
    pq.write_table(make(1).slice(0, 0), tmp_path / "day=d" / "hour=1" / "none.parquet")
    rows = ParquetRows(str(tmp_path))
    assert rows.rows == 80 and set(rows.read(0, 80)["day"].to_pylist()) == {None, "a b"}
    assert rows.spans("day") is None


def test_folders_that_do_not_agree_are_refused(tmp_path: Path, make: Make) -> None:
    hive(tmp_path, make)
    place = tmp_path / "month=1" / "hour=1"
    place.mkdir(parents=True)
    pq.write_table(make(2), place / "a.parquet")
    with pytest.raises(DataError, match=r"month=1/hour=1/a\.parquet lies in folders of month, hour, but day="):
        ParquetRows(str(tmp_path))
    (place / "a.parquet").unlink()
    pq.write_table(make(2).append_column("hour", [[1, 1]]), tmp_path / "day=2026-11-25" / "hour=14" / "part-0.parquet")
    with pytest.raises(DataError, match="column 'hour' is in the file and in its folder's name. Drop it from one"):
        ParquetRows(str(tmp_path))


def test_numbers_are_read_as_the_widest_of_the_files_and_never_narrower(tmp_path: Path) -> None:
    kinds = {"a": (pa.int32(), pa.float32()), "b": (pa.int64(), pa.float64()), "c": (pa.int8(), pa.float32())}
    for name, (whole, real) in kinds.items():
        table = pa.table({"n": pa.array([1, 2], whole), "x": pa.array([0.5, 0.25], real)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    rows = ParquetRows(str(tmp_path))
    assert rows.schema == pa.schema({"n": pa.int64(), "x": pa.float64()})
    assert rows.read(0, 6).to_pydict() == {"n": [1, 2] * 3, "x": [0.5, 0.25] * 3}
    assert rows.read(0, 2).schema == rows.schema
    pq.write_table(pa.table({"n": [1.5], "x": [0.5]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet: column 'n' is double, but int64 in .*b\.parquet"):
        ParquetRows(str(tmp_path))
