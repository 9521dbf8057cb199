import gc
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rtrain.batch import Batch
from rtrain.data.cursor import Cursor
from rtrain.data.interactions import Dataset, Interactions
from rtrain.data.prefetch import NAME
from rtrain.errors import ConfigError, DataError
from rtrain.schema import Schema

Write = Callable[..., str]
Make = Callable[..., pa.Table]

WINDOWS = {"one window": 1_000_000, "windows of several row groups": 250, "a row group each": 10}


def opened(path: str, schema: Schema, window_rows: int = 1_000_000, prefetch: int = 0) -> Dataset:
    return Interactions(source=path, schema=schema, window_rows=window_rows, prefetch=prefetch).open()


def rows_of(data: Dataset, world_size: int, count: int, global_batch: int = 64, **kwargs: object) -> list[list[int]]:
    """Row numbers of the next `count` global batches: the ranks' shares, one behind the other."""
    settings = {"global_batch": global_batch, "seed": 3, "world_size": world_size} | kwargs
    readers = [data.reader(rank=rank, **settings) for rank in range(world_size)]  # type: ignore[arg-type]
    steps = []
    for shares in itertools.islice(zip(*readers, strict=True), count):
        assert len({cursor for _, cursor in shares}) == 1
        assert sum(batch.rows for batch, _ in shares) == shares[0][0].global_rows
        steps.append([row for batch, _ in shares for row in batch.row.tolist()])
    return steps


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.global_rows == b.global_rows and a.ids.keys == b.ids.keys
    for x, y in zip(
        (a.dense, a.ids.values, a.ids.lengths, a.label, a.group, a.row),
        (b.dense, b.ids.values, b.ids.lengths, b.label, b.group, b.row),
        strict=True,
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("window_rows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("files", [1, 3])
def test_every_epoch_has_each_row_once_in_the_same_batches_at_any_world_size(
    write: Write, schema: Schema, window_rows: int, files: int
) -> None:
    data = opened(write(1000, files=files), schema, window_rows)
    per_epoch = data.reader(global_batch=64, seed=3, rank=0, world_size=1).batches_per_epoch
    alone = rows_of(data, 1, 2 * per_epoch)
    first, second = (list(itertools.chain(*alone[e * per_epoch : (e + 1) * per_epoch])) for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(*data.ranges["train"]))
    assert first != second
    for world_size in (2, 3, 4):
        assert rows_of(data, world_size, 2 * per_epoch) == alone


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_cursor_resumes_at_any_world_size_with_the_same_rest(
    draw: st.DataObject, schema: Schema, write: Write
) -> None:
    window_rows = draw.draw(st.sampled_from(sorted(WINDOWS.values())))
    data = opened(write(1000), schema, window_rows, prefetch=draw.draw(st.integers(0, 2)))
    reader = data.reader(global_batch=100, seed=3, rank=0, world_size=1)
    plain = list(itertools.islice(reader, 3 * reader.batches_per_epoch))
    number = draw.draw(st.integers(0, len(plain) - 2))
    cursor = Cursor.from_dict(plain[number][1].to_dict())
    rest = rows_of(data, draw.draw(st.integers(1, 4)), len(plain) - number - 1, 100, cursor=cursor)
    assert rest == [batch.row.tolist() for batch, _ in plain[number + 1 :]]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_of_any_row_groups_every_world_reads_the_same_batches_from_any_cursor(
    draw: st.DataObject, schema: Schema, make: Make, tmp_path: Path
) -> None:
    """Files of one to a few row groups of any size, windows and batches of any size, worlds up to 8."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    groups = draw.draw(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=4))
    table = make(sum(map(sum, groups)) + 60)  # some for validation and test
    at = 0
    for number, sizes in enumerate([*groups, [60]]):
        with pq.ParquetWriter(folder / f"{number}.parquet", table.schema) as writer:
            for size in sizes:
                writer.write_table(table.slice(at, size))
                at += size
    data = opened(str(folder), schema, window_rows=draw.draw(st.sampled_from([7, 40, 150, 10_000])))
    batch, seed = draw.draw(st.integers(16, 64)), draw.draw(st.integers(0, 2**31))
    asked = {"global_batch": batch, "seed": seed}
    try:
        per_epoch = data.reader(**asked, rank=0, world_size=8).batches_per_epoch  # type: ignore[arg-type]
    except (ConfigError, DataError) as refused:  # rows that would leave a rank of 8 none are refused before training
        event("refused")
        assert "global_batch" in str(refused)
        return
    alone = rows_of(data, 1, 2 * per_epoch, **asked)
    for epoch in (alone[:per_epoch], alone[per_epoch:]):
        assert sorted(itertools.chain(*epoch)) == list(range(*data.ranges["train"]))
    reader = data.reader(**asked, rank=0, world_size=1)  # type: ignore[arg-type]
    number = draw.draw(st.integers(0, 2 * per_epoch - 2))
    cursor = Cursor.from_dict(list(itertools.islice(reader, number + 1))[-1][1].to_dict())
    for world in (1, 2, 3, 4, 8):
        assert rows_of(data, world, 2 * per_epoch - number - 1, **asked, cursor=cursor) == alone[number + 1 :]


def test_batches_hold_the_rows_that_they_name(write: Write, schema: Schema) -> None:
    """Across windows, row groups and files, each batch equals its rows encoded directly."""
    path = write(600, group=50, files=2)
    whole, windowed = opened(path, schema), opened(path, schema, window_rows=120)
    everything = whole._encode(whole._blocks(*whole.ranges["train"]))
    for batch, _ in itertools.islice(windowed.reader(global_batch=70, seed=0, rank=1, world_size=2), 30):
        assert_equal(batch, everything.take(batch.row.numpy(), global_rows=batch.global_rows))


@pytest.mark.parametrize("window_rows", WINDOWS.values(), ids=WINDOWS)
def test_prefetching_changes_nothing_but_the_time(write: Write, schema: Schema, window_rows: int) -> None:
    path = write(700)
    readers = [
        opened(path, schema, window_rows, prefetch).reader(global_batch=48, seed=1, rank=1, world_size=2)
        for prefetch in (0, 1, 3)
    ]
    for (a, at), (b, bt), (c, ct) in itertools.islice(zip(*readers, strict=True), 30):
        assert_equal(a, b)
        assert_equal(a, c)
        assert at == bt == ct


def test_the_position_is_that_of_the_batch_in_hand(write: Write, schema: Schema) -> None:
    data = opened(write(1000), schema, prefetch=4)
    reader = data.reader(global_batch=100, seed=1, rank=0, world_size=1)
    assert reader.cursor == Cursor()
    seen = []
    for batch, cursor in itertools.islice(reader, 3):
        assert reader.cursor == cursor
        seen.append(batch.row.tolist())
    # A new iteration goes on where the last one was consumed to, not where it had read to.
    batch, _ = next(iter(reader))
    assert batch.row.tolist() not in seen
    assert rows_of(data, 1, 4, 100, seed=1) == [*seen, batch.row.tolist()]


def test_threads_end_with_the_reader_or_its_iterator(write: Write, schema: Schema) -> None:
    data = opened(write(1000), schema, 250, prefetch=2)

    def threads() -> int:
        return sum(t.name == NAME for t in threading.enumerate())

    reader = data.reader(global_batch=50, seed=1, rank=0, world_size=1)
    steps: Iterator[tuple[Batch, Cursor]] = iter(reader)
    next(steps)
    assert threads() == 2  # one for batches, one for windows
    del steps
    assert threads() == 0
    steps = iter(reader)
    next(steps)
    reader.close()
    assert threads() == 0
    assert list(steps) == [] and list(reader) == []


def test_a_bad_value_is_raised_where_its_batch_would_come(write: Write, schema: Schema) -> None:
    items = [5] * 1000
    items[612] = 100
    path = write(1000, files=2, item=pa.array(items))
    for prefetch in (0, 2):
        reader = opened(path, schema, 100, prefetch).reader(global_batch=50, seed=1, rank=0, world_size=1)
        with pytest.raises(DataError, match=r"part-1\.parquet rows 100\.\.199 \(row group \d\): .* id 100 at row 112,"):
            for _ in reader:
                pass


@pytest.mark.parametrize("window_rows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_scan_has_every_row_once_with_as_many_batches_on_every_rank(
    write: Write, schema: Schema, window_rows: int, world_size: int
) -> None:
    data = opened(write(1000), schema, window_rows, prefetch=1)
    for split in ("train", "valid", "test"):
        ranks = [list(data.scan(split, global_batch=30, rank=r, world_size=world_size)) for r in range(world_size)]
        steps = list(zip(*ranks, strict=True))
        # What fits a window is in memory anyway, and dealt batch by batch; else a rank has a run of the rows.
        parts = steps if data.rows(split) <= window_rows else ranks
        assert [row for part in parts for batch in part for row in batch.row.tolist()] == list(
            range(*data.ranges[split])
        )
        assert all(batch.global_rows == sum(b.rows for b in step) <= 30 for step in steps for batch in step)


def decoded(monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]) -> int:
    """Rows that Parquet decodes while `make` runs: those of all row groups that it touches."""
    counted = list[int]()
    plain = pq.ParquetFile.read_row_groups

    def counting(self: pq.ParquetFile, groups: list[int], **kwargs: object) -> pa.Table:
        table = plain(self, groups, **kwargs)
        counted.append(table.num_rows)
        return table

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "read_row_groups", counting)
        make()
    return sum(counted)


def test_a_rank_decodes_its_share_of_the_rows(write: Write, schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(write(3200, group=20), schema, window_rows=320)
    rows = data.rows("train")
    assert data.strata == 16
    found = dict[int, int]()
    for world in (1, 2, 4, 8):
        found[world] = 0
        for rank in range(world):
            reader = data.reader(global_batch=64, seed=3, rank=rank, world_size=world)
            epoch = partial(deque, itertools.islice(reader, reader.batches_per_epoch), 0)
            found[world] = max(found[world], decoded(monkeypatch, epoch))
            scan = partial(deque, data.scan("train", global_batch=64, rank=rank, world_size=world), 0)
            assert decoded(monkeypatch, scan) <= rows / world + 2 * 20
    assert rows <= found[1] <= 1.25 * rows, "a group that two strata share is decoded by each"
    for world in (2, 4, 8):
        assert found[world] <= found[1] / world + 3 * 20, found


def test_row_groups_that_ranks_cannot_share_are_said(write: Write, schema: Schema) -> None:
    path = write(1000, group=200)
    (said,) = opened(path, schema, window_rows=300).remarks(0)
    assert said.startswith("every rank reads all 800 rows that train: their 4 row groups, of up to 200 rows, cannot be")
    assert "data.window_rows (300)" in said
    assert not opened(path, schema, window_rows=400).remarks(0) and not opened(path, schema).remarks(0)


def test_more_ranks_than_parts_of_the_rows_are_said(write: Write, schema: Schema) -> None:
    path = write(4000, group=20)
    data = opened(path, schema, window_rows=100)
    assert data.strata == 4 and not data.remarks(0, 4) and not data.remarks(0, 1)
    (said,) = data.remarks(0, 32)
    assert said.startswith(
        "each of 32 ranks reads 1/4 of the rows that train, and not 1/32: data.window_rows (100), of"
    )
    assert said.endswith("makes 4 parts of row groups of up to 20 rows. Raise data.window_rows to 800")
    assert opened(path, schema, window_rows=800).strata == 32
    (said,) = data.remarks(0, 512)
    assert said.endswith("Write more and smaller row groups")


def test_a_split_that_was_let_go_takes_no_memory_until_it_is_asked_for(
    write: Write, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(write(5000, group=500), schema)
    first, rows = rows_of(data, 1, 3), data.rows("train")

    def scan() -> None:
        deque(data.scan("train", global_batch=64, rank=0, world_size=1), 0)

    assert decoded(monkeypatch, scan) == 0
    gone = weakref.ref(next(iter(data._kept.values())))
    data.let_go("train")
    gc.collect()
    assert gone() is None
    assert decoded(monkeypatch, scan) >= rows and decoded(monkeypatch, scan) == 0
    assert rows_of(data, 1, 3) == first


def test_a_split_of_one_window_is_read_once(write: Write, schema: Schema) -> None:
    path = write(500)
    data = opened(path, schema)
    reader = data.reader(global_batch=100, seed=1, rank=0, world_size=1)
    next(iter(reader))
    Path(path).unlink()
    assert len(list(itertools.islice(reader, 20))) == 20
    assert len(list(data.scan("train", global_batch=100, rank=0, world_size=1))) == 4
    with pytest.raises(DataError, match=r"rows\.parquet: no such file"):
        list(data.scan("test", global_batch=10, rank=0, world_size=1))


def test_what_cannot_be_read_is_refused_before_reading(write: Write, schema: Schema) -> None:
    data = opened(write(1000), schema)
    rows = data.rows("train")
    with pytest.raises(ConfigError, match=f"global_batch 3: {rows} rows make .* of at least 2, too few for 4"):
        data.reader(global_batch=3, seed=0, rank=0, world_size=4)
    with pytest.raises(ConfigError, match="too few for 4 data ranks"):
        data.scan("test", global_batch=3, rank=0, world_size=4)
    with pytest.raises(ConfigError, match="must be at least 1 row, got 0"):
        data.reader(global_batch=0, seed=0, rank=0, world_size=1)
    with pytest.raises(ConfigError, match=r"data rank 2 is not one of 0\.\.1"):
        data.reader(global_batch=10, seed=0, rank=2, world_size=2)
    with pytest.raises(DataError, match=f"stands at sample 5000 of an epoch that has {rows} rows"):
        data.reader(global_batch=10, seed=0, rank=0, world_size=1, cursor=Cursor(sample=5000))
    with pytest.raises(ConfigError, match="there is no split 'dev'; the splits are train, valid, test"):
        data.reader("dev", global_batch=10, seed=0, rank=0, world_size=1)  # type: ignore[arg-type]
