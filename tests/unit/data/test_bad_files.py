"""One file of many that is not as the others are: read where nothing is lost by it, else refused in one line."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rtrain
from rtrain import (
    AUC,
    DLRM,
    AdamW,
    ByTime,
    Dense,
    Id,
    IdList,
    Interactions,
    Moment,
    Pairs,
    Random,
    RowWiseAdagrad,
    Schema,
)
from rtrain.data.parquet import ParquetRows
from rtrain.errors import ConfigError, DataError

FILES, ROWS = 9, 40
SCHEMA = Schema(
    features=(
        Id(name="user", entity="user", rows=9),
        Id(name="city", vocabulary=("a", "b")),
        IdList(name="tags", rows=9),
        Dense(name="price"),
    ),
    group="user",
    time="time",
)


def table(file: int) -> pa.Table:
    numbers = np.arange(file * ROWS, (file + 1) * ROWS)
    return pa.table(
        {
            "user": numbers % 9,
            "city": pa.array([("a", "b", "c", None)[n % 4] for n in numbers]),
            "tags": pa.array([[n % 9] * (n % 3) for n in numbers.tolist()]),
            "price": numbers / 2,
            "time": numbers,
            "label": (numbers % 2).astype(float),
        }
    )


def put(folder: Path, file: int, rows: pa.Table, name: str = "") -> Path:
    path = folder / (name or f"part-{file}.parquet")
    path.parent.mkdir(exist_ok=True)
    pq.write_table(rows, path, row_group_size=20, compression="none")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine files of forty rows, in order of time."""
    for file in range(FILES):
        put(tmp_path / "set", file, table(file))
    return tmp_path / "set"


def with_column(rows: pa.Table, name: str, column: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, column)


def said_of(what: Callable[[], object]) -> str:
    with pytest.raises((DataError, ConfigError)) as refused:
        what()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("file", [0, 6])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("user", pa.int8()),
        ("user", pa.uint32()),
        ("price", pa.float32()),
        ("city", pa.dictionary(pa.int8(), pa.string())),
        ("city", pa.large_string()),
        ("city", pa.null()),
        ("tags", pa.list_(pa.int16())),
        ("tags", pa.large_list(pa.int64())),
        ("tags", pa.null()),
    ],
)
def test_a_file_of_another_type_that_loses_nothing_is_read(
    folder: Path, file: int, name: str, kind: pa.DataType
) -> None:
    column = pa.nulls(ROWS) if pa.types.is_null(kind) else table(file)[name].cast(kind)
    put(folder, file, with_column(table(file), name, column))
    expected = [value for n in range(FILES) for value in (column if n == file else table(n)[name]).to_pylist()]
    data = Interactions(source=str(folder), schema=SCHEMA).open()
    assert [v for s in ("train", "valid", "test") for v in data.raw(s, 0, data.rows(s))[name].to_pylist()] == expected
    data.refuse_rows()


@pytest.mark.parametrize(
    ("column", "checksum", "why"), [("tags", True, "CRC checksum verification failed"), ("price", False, "Corrupt")]
)
def test_a_broken_page_is_named_by_its_row_group_and_column(
    folder: Path, column: str, checksum: bool, why: str
) -> None:
    file = folder / "part-6.parquet"
    packed = "none" if checksum else "snappy"
    pq.write_table(
        table(6), file, row_group_size=10, compression=packed, write_page_checksum=checksum, use_dictionary=False
    )
    group = pq.read_metadata(file).row_group(2)
    broken = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == column)
    content = bytearray(file.read_bytes())
    last = broken.data_page_offset + broken.total_compressed_size
    for at in range(last - 12, last - 2):  # the page's end, behind its header
        content[at] ^= 0xFF
    file.write_bytes(content)
    data = Interactions(source=str(folder), schema=SCHEMA, split=ByTime(valid=0.1, test=0.1)).open()
    said = said_of(data.refuse_rows)
    assert said.startswith(f"{file}: cannot be read (rows 20..29 (row group 2), column {column!r}: ") and why in said
    assert said.endswith(". If it is damaged, copy or write it again")
    stored = ParquetRows(str(folder))
    assert said_of(lambda: stored.read(0, stored.rows)) == said
    number = 6 * 2 + 2  # two groups in each of the others
    said = said_of(lambda: list(stored.batches(stored.row_groups[number], [column], 3)))
    assert said.startswith(f"{file}: cannot be read (rows 20..29 (row group 2): ") and why in said


@pytest.mark.parametrize("file", [0, 6])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("user", pa.float64()),
        ("user", pa.string()),
        ("user", pa.uint64()),
        ("price", pa.int64()),
        ("tags", pa.list_(pa.float64())),
        ("tags", pa.int64()),
        ("time", pa.timestamp("s")),
        ("label", None),
    ],
)
def test_a_file_of_a_type_that_no_one_type_holds_is_named(
    folder: Path, file: int, name: str, kind: pa.DataType | None
) -> None:
    rows = table(file)
    if kind is None:
        rows = rows.drop_columns([name])
    elif kind == pa.int64():
        rows = with_column(rows, name, pa.array(range(ROWS)))
    else:
        rows = with_column(rows, name, rows[name].cast(kind))
    put(folder, file, rows)
    said = said_of(Interactions(source=str(folder), schema=SCHEMA).open)
    stored = pq.read_schema(folder / f"part-{file}.parquet")  # of a moment in seconds: of milliseconds
    got = stored.field(name).type if name in stored.names else "missing"
    usual = pq.read_schema(folder / "part-1.parquet").field(name).type
    first, second = (usual, got) if file else (got, usual)
    named = f"part-{file or 1}.parquet: column {name!r} is {second}, but {first} in "
    assert named in said and said.endswith("part-0.parquet. Write all files of the folder with the same columns")


def test_a_column_that_is_there_twice_is_named(folder: Path) -> None:
    rows = table(6)
    put(folder, 6, pa.Table.from_arrays([*rows.columns, rows["user"]], [*rows.column_names, "user"]))
    assert "part-6.parquet: there are two columns 'user'. Drop or rename one" in said_of(
        Interactions(source=str(folder), schema=SCHEMA).open
    )


@pytest.mark.parametrize("file", [0, 6])
@pytest.mark.parametrize(
    "rows",
    [table(0).slice(0, 0), pa.table({}), pa.table({name: pa.nulls(0) for name in table(0).column_names})],
    ids=["typed", "no columns", "an empty frame's"],
)
def test_a_file_without_rows_is_nothing(folder: Path, file: int, rows: pa.Table) -> None:
    put(folder, file, rows)
    found = ParquetRows(str(folder))
    assert found.rows == (FILES - 1) * ROWS
    assert found.read(0, found.rows).equals(pa.concat_tables([table(n) for n in range(FILES) if n != file]))
    Interactions(source=str(folder), schema=SCHEMA).open().refuse_rows()


def test_row_groups_without_rows_are_nothing(folder: Path) -> None:
    with pq.ParquetWriter(folder / "part-6.parquet", table(6).schema) as out:
        for rows in (table(6).slice(0, 0), table(6), table(6).slice(0, 0)):
            out.write_table(rows)
    assert ParquetRows(str(folder)).read(6 * ROWS, 7 * ROWS).equals(table(6))


def test_files_beside_folders_of_columns_are_not_left_out(folder: Path) -> None:
    put(folder / "day=1", 9, table(9))
    said = said_of(lambda: ParquetRows(str(folder)))
    assert "part-0.parquet lies in folders of no column, but day=1/part-9.parquet in those of day" in said
    (folder / "day=1" / "part-9.parquet").unlink()
    assert ParquetRows(str(folder)).rows == FILES * ROWS


def test_links_are_read_or_named(folder: Path, tmp_path: Path) -> None:
    (folder / "part-6.parquet").rename(tmp_path / "elsewhere")
    (folder / "part-6.parquet").symlink_to(tmp_path / "elsewhere")
    assert ParquetRows(str(folder)).rows == FILES * ROWS
    (tmp_path / "elsewhere").unlink()
    assert "part-6.parquet: no such file or folder" in said_of(lambda: ParquetRows(str(folder)))
    (folder / "part-6.parquet").unlink()
    (folder / "part-6.parquet").mkdir()
    assert "part-6.parquet: a folder, but named as a file" in said_of(lambda: ParquetRows(str(folder)))
    parted = tmp_path / "parted"
    parted.mkdir()
    put(parted / "day=1", 0, table(0))
    (parted / "day=2").symlink_to(parted / "day=1")
    assert "day=2: a link to a folder, which a listing does not follow" in said_of(lambda: ParquetRows(str(parted)))


def test_a_folder_is_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in range(3):
        with fsspec.open(f"memory://flat/{file}.parquet", "wb") as out:
            pq.write_table(table(file), out)
    fs, listed = fsspec.filesystem("memory"), list[str]()
    plain = type(fs).ls
    monkeypatch.setattr(type(fs), "ls", lambda self, path, **how: listed.append(path) or plain(self, path, **how))
    rows = ParquetRows("memory://flat")
    assert rows.read(0, 3 * ROWS).num_rows == 3 * ROWS and listed == ["/flat"]


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def rewrite(path: Path) -> None:
    """Other rows, of the same size."""
    size = path.stat().st_size
    put(path.parent, 6, with_column(table(6), "time", pa.array(range(1, ROWS + 1))))
    assert path.stat().st_size == size
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [shrink, grow, rewrite])
def test_a_file_that_is_written_to_while_it_is_in_use_is_named(folder: Path, change: Callable[[Path], None]) -> None:
    rows = ParquetRows(str(folder))
    change(folder / "part-6.parquet")
    assert rows.read(0, 6 * ROWS).num_rows == 6 * ROWS
    said = said_of(lambda: rows.read(6 * ROWS, 6 * ROWS + 1, ["time"]))
    assert "part-6.parquet: it was written to while it was in use (" in said


def test_a_file_that_is_touched_alone_is_read(folder: Path) -> None:
    rows = ParquetRows(str(folder))
    os.utime(folder / "part-6.parquet", ns=(1, 1))
    assert rows.read(6 * ROWS, 7 * ROWS).equals(table(6))


@pytest.mark.parametrize("split", [ByTime(), Random()], ids=["by time", "by chance"])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("user", None, "feature 'user' is null at row 35. Fill it"),
        ("price", None, "feature 'price' is null at row 35"),
        ("price", float("inf"), "feature 'price' is inf at row 35"),
        ("price", 1e39, "feature 'price' is 1e+39 at row 35"),
        ("label", None, "label 'label' is null at row 35; it must be 0 or 1"),
    ],
)
def test_what_the_footers_tell_is_refused_before_training_however_small_the_window(
    folder: Path, name: str, value: float | None, said: str, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = table(6)[name].to_pylist()
    values[35] = value
    put(folder, 6, with_column(table(6), name, pa.array(values, table(6)[name].type)))
    data = Interactions(source=str(folder), schema=SCHEMA, window_rows=40, split=split).open()
    read, plain = list[int](), ParquetRows.read
    monkeypatch.setattr(ParquetRows, "read", lambda self, start, *rest: read.append(start) or plain(self, start, *rest))
    assert f"part-6.parquet rows 20..39 (row group 1): {said}" in said_of(data.refuse_rows)
    assert read == [6 * ROWS + 20], "that row group alone"


def test_a_moment_that_the_footers_tell_is_missing(folder: Path) -> None:
    for file in range(FILES):
        seen = [None if (file, row) == (6, 35) else 1 for row in range(ROWS)]
        put(folder, file, table(file).append_column("seen", pa.array(seen, pa.int64())))
    schema = replace(SCHEMA, features=(*SCHEMA.features, Moment(name="hour", column="seen", part="hour")))
    data = Interactions(source=str(folder), schema=schema, window_rows=40).open()
    said = said_of(data.refuse_rows)
    assert said.startswith("part-6.parquet rows 20..39 (row group 1): ") and "is null at row 35" in said


def test_a_column_that_some_files_say_is_never_null_may_be_null_in_others(folder: Path) -> None:
    fields = [field.with_nullable(field.name != "time") for field in table(0).schema]
    put(folder, 0, table(0).cast(pa.schema(fields)))
    put(folder, 6, with_column(table(6), "time", pa.nulls(ROWS, pa.int64())))
    rows = ParquetRows(str(folder))
    assert rows.read(0, rows.rows, ["time"])["time"].null_count == ROWS


@pytest.mark.parametrize(
    ("last", "said"), [("77", "feature 'shop' has id 77"), ("__HIVE_DEFAULT_PARTITION__", "feature 'shop' is null")]
)
def test_what_the_folders_names_tell_is_refused_before_training(tmp_path: Path, last: str, said: str) -> None:
    for file in range(3):
        put(tmp_path / f"shop={file if file else last}", 0, table(file))
    schema = replace(SCHEMA, features=(*SCHEMA.features, Id(name="shop", rows=9)))
    data = Interactions(source=str(tmp_path), schema=schema, window_rows=40, split=Random()).open()
    assert f"shop={last}/part-0.parquet rows 0..19 (row group 0): {said} at row 0" in said_of(data.refuse_rows)


def test_a_row_that_only_the_baseline_reads_is_no_traceback(folder: Path) -> None:
    labels = table(2)["label"].to_numpy().copy()
    labels[3] = np.nan  # of which no footer tells
    put(folder, 2, with_column(table(2), "label", pa.array(labels)))
    data = Interactions(source=str(folder), schema=SCHEMA, window_rows=40).open()
    *_, boosting = data.baselines((), 1000)
    said = said_of(lambda: boosting.says("test"))
    assert "gradient boosting (a baseline) cannot read a row that trains (Input y contains NaN.)" in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("user", 9, "user 9 is not one of data.users=9 (valid 0..8), at row 7 of part-6.parquet. Set data.users to 10"),
        ("tag", None, "'tag' is null at row 7 of part-6.parquet. Fill it, or drop the row"),
        ("time", None, "'time' is null at row 7 of part-6.parquet. Fill it, or drop the row"),
    ],
)
@pytest.mark.parametrize("rated", [False, True])
def test_a_bad_row_of_positives_is_named_by_its_file(
    tmp_path: Path, rated: bool, name: str, value: int | None, said: str
) -> None:
    for file in range(FILES):
        rows = table(file).select(["user", "time", "price"]).append_column("tag", table(file)["user"])
        rows = with_column(rows, "price", pa.array([n % 5 for n in range(ROWS)]))
        if file == 6:
            values = rows[name].to_pylist()
            for row in (7, 5) if rated else (7,):  # row 5 has too low a rating to count
                values[row] = value
            rows = with_column(rows, name, pa.array(values, pa.int64()))
        put(tmp_path, file, rows)
    data = Pairs(source=str(tmp_path), users=9, items=9, user="user", item="tag", time="time")
    assert said in said_of((replace(data, rating="price", at_least=1.0) if rated else data).open)


def test_ratings_and_ids_that_are_no_numbers_are_one_line(folder: Path) -> None:
    data = Pairs(source=str(folder), users=9, items=9, user="user", item="time", time="")
    said = said_of(replace(data, item="user").open)
    assert "column 'user' is named by data.user and data.item. Give each its own" in said
    said = said_of(replace(data, rating="city", at_least=1.0).open)
    assert "column 'city' (data.rating) is string; numbers are needed" in said
    for file in range(FILES):
        put(folder, file, with_column(table(file), "user", pa.array([2**63 + 1] * ROWS, pa.uint64())))
    assert "column 'user' cannot be numbered" in said_of(data.open)


def test_a_finished_run_is_left_as_it_is_where_its_data_changed(folder: Path, tmp_path: Path) -> None:
    run = rtrain.Run(
        name="small",
        model=DLRM(dim=4, bottom=(4,), top=(4,)),
        data=Interactions(source=str(folder), schema=SCHEMA),
        optim=AdamW(lr=1e-3),
        sparse_optim=RowWiseAdagrad(lr=1e-3),
        global_batch=32,
        duration=rtrain.Duration(steps=2),
        evaluation=rtrain.Evaluation(monitor="auc", boosting_rows=0),
        cluster=rtrain.Cluster(workers=1),
        handoff=rtrain.Handoff(export=False),
        metrics=(AUC(),),
        storage=str(tmp_path / "runs"),
    )
    rtrain.train(run, launcher="inline", quiet=True)
    home = tmp_path / "runs" / "small"
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert home / "result.json" in before
    put(folder, FILES, table(FILES))
    longer = replace(run, duration=rtrain.Duration(steps=4))
    said = said_of(lambda: rtrain.train(longer, launcher="inline", quiet=True))
    assert said.startswith("run 'small': the data changed since step 2 (fingerprint ")
    assert f"; written to since: part-{FILES}.parquet). Bring them back as they were" in said
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before if "notices" not in path.parts} == {
        path: content for path, content in before.items() if "notices" not in path.parts
    }
