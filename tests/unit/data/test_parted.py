"""Rows that chance parts: each in one split, read as it is stored, and trained on without a time column."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rtrain.data.holdout import Random
from rtrain.data.interactions import Interactions
from rtrain.data.parquet import ParquetRows
from rtrain.data.parted import ByChance, Parted
from rtrain.errors import DataError
from rtrain.schema import Schema

Write = Callable[..., str]


@pytest.mark.parametrize(("group", "files"), [(7, 3), (100, 1), (1000, 2)])
def test_every_row_is_in_one_split_as_it_is_stored(write: Write, group: int, files: int) -> None:
    stored = ParquetRows(write(1000, group=group, files=files))
    whole = stored.read(0, 1000).append_column("at", pa.array(np.arange(1000)))
    parted, ranges = Random(valid=0.2, test=0.1).part(stored, "")
    read = parted.read(0, 1000)
    numbers = []
    for start, stop in ranges.values():
        rows = read.slice(start, stop - start)
        found = np.flatnonzero(np.isin(whole["price"].to_numpy(), rows["price"].to_numpy()))  # prices are all different
        assert whole.take(pa.array(found)).drop_columns("at").equals(rows), "in the order of the data"
        numbers.append(found)
    assert sorted(np.concatenate(numbers)) == list(range(1000))
    assert [len(n) for n in numbers] == list(parted.sizes)
    assert abs(parted.sizes[1] - 200) < 50 and abs(parted.sizes[2] - 100) < 40  # 4 standard deviations


@pytest.mark.parametrize("files", [1, 3])
def test_a_part_is_read_as_a_slice_of_the_whole(write: Write, files: int) -> None:
    parted = Parted(ParquetRows(write(500, group=60, files=files)), ByChance(valid=0.3, test=0.2, seed=5))
    whole, file_rows = parted.read(0, 500, ["item", "price"]), parted.file_rows(0, 500)
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, stop = sorted(draw.integers(0, 501, 2).tolist())
        assert parted.read(start, stop, ["item", "price"]).equals(whole.slice(start, stop - start))
        if start < stop:
            assert (parted.file_rows(start, stop) == file_rows[start:stop]).all()
            groups = parted.groups(start, stop)
            assert groups[0].first_row <= start < groups[0].stop and groups[-1].first_row < stop <= groups[-1].stop
    assert whole.num_rows == 500 and parted.row_groups[-1].stop == 500


def test_another_seed_is_another_split_and_a_later_row_moves_none(write: Write) -> None:
    rows = ParquetRows(write(300, group=50))
    first, again, other = (Parted(rows, ByChance(valid=0.2, test=0.2, seed=seed)) for seed in (1, 1, 2))
    assert first.read(0, 300).equals(again.read(0, 300)) and first.fingerprint() == again.fingerprint()
    assert not first.read(0, 300).equals(other.read(0, 300)) and first.fingerprint() != other.fingerprint()
    codes = [first._codes(group) for group in rows.row_groups]
    assert (first._codes(replace(rows.row_groups[0], rows=40)) == codes[0][:40]).all()


def test_data_without_a_time_column_are_read_at_any_number_of_ranks(write: Write, schema: Schema) -> None:
    timeless = replace(schema, time="")
    data = Interactions(source=write(900, group=100), schema=timeless, split=Random(), window_rows=250).open()
    assert {s: data.rows(s) for s in ("train", "valid", "test")} == {s: len(data.numbers(s)) for s in data.ranges}

    def seen(ranks: int) -> list[list[int]]:
        shares: list[Any] = []
        for rank in range(ranks):
            reader = iter(data.reader(global_batch=64, seed=3, rank=rank, world_size=ranks))
            shares.append([next(reader)[0].row.tolist() for _ in range(12)])
        return [list(chain(*parts)) for parts in zip(*shares, strict=True)]

    alone = seen(1)
    assert alone == seen(2) == seen(3)
    assert sorted(chain(*alone))[: data.rows("train")] == list(data.numbers("train")), "twelve batches: an epoch"
    raw = data.raw("test", 0, data.rows("test"), ["price"])["price"].to_numpy()
    scanned = np.concatenate([b.dense[:, 1].numpy() for b in data.scan("test", global_batch=50, rank=0, world_size=1)])
    assert np.allclose(raw, scanned)


def test_a_bad_value_is_named_by_its_row_in_the_file(write: Write, schema: Schema) -> None:
    item = np.arange(600) % 100
    item[437] = 5000
    source = write(600, group=100, files=2, item=pa.array(item))
    data = Interactions(source=source, schema=replace(schema, time=""), split=Random()).open()
    with pytest.raises(DataError, match=r"5000.* at row 137"):  # of the second file
        for split in ("train", "valid", "test"):
            list(data.scan(split, global_batch=50, rank=0, world_size=1))  # type: ignore[arg-type]


def test_too_few_rows_are_refused(write: Write) -> None:
    with pytest.raises(
        DataError, match=r"parted by chance, \d rows train, \d validate and \d test: too few rows \(4\)"
    ):
        Random(valid=0.01, test=0.01).part(ParquetRows(write(4)), "")
