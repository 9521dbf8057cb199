"""Criteo's text as Parquet: every value where it belongs, one line for what is no such text, nothing half-written."""

import gzip
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from recipes import dlrm_criteo
from rtrain.data import criteo, sources
from rtrain.data.parquet import ParquetRows
from rtrain.errors import DataError
from rtrain.storage import Folder

FIRST = ["1", *map(str, range(-1, 12)), *(f"{n:08x}" for n in range(0xFF, 0xFF + 26))]
SECOND = ["0", *[""] * 13, *[""] * 26]


def text(tmp_path: Path, *rows: list[str], packed: bool = False) -> str:
    lines = "".join("\t".join(row) + "\n" for row in rows).encode()
    path = tmp_path / ("train.txt.gz" if packed else "train.txt")
    path.write_bytes(gzip.compress(lines) if packed else lines)
    return str(path)


@pytest.mark.parametrize("packed", [False, True])
def test_each_value_is_where_it_belongs(tmp_path: Path, packed: bool) -> None:
    out = criteo.convert(text(tmp_path, FIRST, SECOND, packed=packed), f"{tmp_path}/out", hashed=1000)
    first, second = ParquetRows(out).read(0, 2).to_pylist()
    assert first["label"] == 1 and [first[name] for name in criteo.NUMBERS] == list(range(-1, 12))
    assert [first[name] for name in criteo.WORDS] == [1 + (0xFF + n) % 999 for n in range(26)]
    assert second["label"] == 0 and [second[name] for name in criteo.NUMBERS] == [None] * 13
    assert [second[name] for name in criteo.WORDS] == [0] * 26
    assert (first["at"], second["at"]) == (0, 1)


def test_many_rows_are_written_in_shards_to_any_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo, "SHARD_ROWS", 100)
    monkeypatch.setattr(criteo, "BLOCK_BYTES", 4096)
    draw, said = np.random.default_rng(0), list[str]()
    rows = [[str(n % 2), *[str(n)] * 13, *(f"{x:08x}" for x in draw.integers(0, 2**32, 26))] for n in range(257)]
    out = criteo.convert(text(tmp_path, *rows), f"memory://criteo/{tmp_path.name}", say=said.append)
    assert Folder(out).names() == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert said == ["100 rows", "200 rows", "257 rows"]
    table = ParquetRows(out).read(0, 257)
    assert table["i1"].to_pylist() == table["at"].to_pylist() == list(range(257))
    assert table["c26"].to_pylist() == [1 + int(row[-1], 16) % (criteo.HASHED - 1) for row in rows]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (["2", *FIRST[1:]], "the label of row 1 is 2; it must be 0 or 1"),
        (["", *FIRST[1:]], "the label of row 1 is None; it must be 0 or 1"),
        ([*FIRST[:-1], "12345"], "column 'c26', row 1: '12345' is no word of 8 hexadecimal digits"),
        ([*FIRST[:-1], "1234567g"], "column 'c26', row 1: '1234567g' is no word of 8 hexadecimal digits"),
        (FIRST[:-1], "behind row 0 it is no text of Criteo's .*40"),
        (["1", "many", *FIRST[2:]], "behind row 0 it is no text of Criteo's .*many.* drop that line"),
    ],
)
def test_what_is_no_such_text_is_one_line_and_leaves_nothing(tmp_path: Path, row: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        criteo.convert(text(tmp_path, FIRST, row), f"{tmp_path}/out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


def test_what_cannot_be_read_or_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine").write_text("x")
    with pytest.raises(DataError, match="held: it is not empty"):
        criteo.convert(text(tmp_path, FIRST), f"{tmp_path}/held")
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        criteo.convert(f"{tmp_path}/none.txt", f"{tmp_path}/out")
    with pytest.raises(DataError, match="Empty CSV file"):
        criteo.convert(text(tmp_path), f"{tmp_path}/out")
    with pytest.raises(DataError, match="a table has room for what is missing"):
        criteo.convert(text(tmp_path, FIRST), f"{tmp_path}/out", hashed=1)


def test_the_debug_recipe_reads_the_sample() -> None:
    data = dlrm_criteo.debug().data.open()
    assert sum(data.rows(split) for split in ("train", "valid", "test")) == criteo.SAMPLE_ROWS
    (path,) = sources.get(criteo.SAMPLE).glob("*.parquet")
    table = pq.read_table(path)
    assert 0.05 < table["i1"].null_count / criteo.SAMPLE_ROWS < 0.15
    assert 0.05 < np.mean(table["c1"].to_numpy() == 0) < 0.12
    batch, _ = next(iter(data.reader(global_batch=64, seed=0, rank=0, world_size=1)))
    assert (batch.dense >= 0).all() and batch.dense.max() < 12


def test_the_recipe_reads_what_was_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that its docstring gives, though a named data set is called almost so."""
    rows = [[str(n % 2), *FIRST[1:]] for n in range(40)]
    monkeypatch.chdir(tmp_path)
    criteo.convert(text(tmp_path, *rows), "criteo")
    run = dlrm_criteo.run()
    run.data.check_source()
    assert run.data.open().rows("train") == 34


def test_the_recipe_reads_a_text_anywhere_and_converts_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RTRAIN_CACHE", f"{tmp_path}/cache")
    rows = [[str(n % 2), *FIRST[1:]] for n in range(40)]
    packed = text(tmp_path, *rows, packed=True)
    there = f"memory://texts/{tmp_path.name}/train.txt.gz"
    fsspec.filesystem("memory").pipe_file(there, Path(packed).read_bytes())
    folders = []
    for uri in (packed, there, there):
        data = replace(dlrm_criteo.run().data, source=f"criteo:{uri}")
        data.check_source()
        assert data.open().rows("train") == 34
        folders.append(sources.get(f"criteo:{uri}"))
    assert capsys.readouterr().err.count("converting") == 2 and folders[1] == folders[2] != folders[0]
    fsspec.filesystem("memory").pipe_file(there, gzip.compress(Path(text(tmp_path, *rows[:30])).read_bytes()))
    assert data.open().rows("train") == 26


@pytest.mark.parametrize(
    ("uri", "says"),
    [("none.txt", "none.txt: no such file"), ("memory://none/x.gz", "x.gz: no such file"), ("", "it is a folder")],
)
def test_a_text_that_is_not_there_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, says: str
) -> None:
    monkeypatch.setenv("RTRAIN_CACHE", f"{tmp_path}/cache")
    data = replace(dlrm_criteo.run().data, source=f"criteo:{uri}")
    with pytest.raises(DataError, match=says) as caught:
        data.check_source()
        data.open()
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").glob("*") if not path.name.endswith(".lock")]
