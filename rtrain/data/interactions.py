"""Interactions of users with items, from a named data set or from Parquet anywhere."""

import ctypes
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa

from rtrain.data import sources
from rtrain.data.columns import Columns, concat
from rtrain.data.cursor import Cursor, check_batches
from rtrain.data.encode import check_columns, encode
from rtrain.data.order import Block, Order, Window
from rtrain.data.parquet import ParquetRows
from rtrain.data.reader import Reader, batches
from rtrain.data.split import ByTime, Ranges, Split, check_train_rows, trained_on
from rtrain.errors import ConfigError, DataError, did_you_mean
from rtrain.schema import Batch, Schema

SPLITS: tuple[Split, ...] = get_args(Split)


class Dataset:
    """Rows that are open for reading: typed, split and numbered.

    A row's number counts over the whole data set, all splits together, in file order.
    """

    split_field = "data.split"
    """Where the config says how large each split is."""

    def __init__(self, rows: ParquetRows, schema: Schema, ranges: Ranges, *, window_rows: int, prefetch: int):
        self.schema = schema
        self.ranges = ranges
        self._rows = rows
        self._window_rows = window_rows
        self._prefetch = prefetch
        self._whole = {self._blocks(split) for split in SPLITS}
        self._kept: dict[tuple[Block, ...], Columns] = {}
        self._keeping = threading.Lock()
        # What a cursor means depends on the rows, on where the splits part, and on what is shuffled together.
        counted = [rows.fingerprint(), ranges, window_rows if self.rows("train") > window_rows else None]
        self.fingerprint: str = hashlib.sha256(json.dumps(counted).encode()).hexdigest()[:16]
        """16 hex digits: a cursor of another fingerprint counts other rows, or in another order."""

    def rows(self, split: Split) -> int:
        """Number of rows in the split."""
        start, stop = self.ranges[_known(split)]
        return stop - start

    def numbers(self, split: Split) -> range:
        """The numbers (`Batch.row`) of the split's rows."""
        return range(*self.ranges[_known(split)])

    def reader(
        self,
        split: Split = "train",
        *,
        global_batch: int,
        seed: int,
        rank: int,
        world_size: int,
        cursor: Cursor | None = None,
    ) -> Reader[Batch]:
        """Shuffled batches for one data rank, epoch after epoch, from `cursor` (none: the beginning) on.

        Raises:
            ConfigError: a global batch that not every rank would get a row of.
            DataError: a cursor of other data.
        """
        return Reader(
            self._load,
            Order(self._blocks(split), seed=seed, window_rows=self._window_rows),
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            cursor=cursor or Cursor(),
            prefetch=self._prefetch,
        )

    def scan(self, split: Split, *, global_batch: int, rank: int, world_size: int) -> Iterator[Batch]:
        """The split once, in file order; every rank gets the same number of batches.

        Raises:
            ConfigError: a global batch that not every rank would get a row of.
        """
        order = Order(self._blocks(split), seed=None, window_rows=self._window_rows)
        check_batches(order.rows, global_batch, rank, world_size)
        shares = batches(
            self._load, order, global_batch=global_batch, rank=rank, world_size=world_size, cursor=Cursor(), epochs=1
        )
        return (batch for batch, _ in shares)

    def raw(self, split: Split, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) of the split as they are stored, all columns."""
        first, last = self.ranges[_known(split)]
        if not 0 <= start <= stop <= last - first:
            raise DataError(f"split {split!r} has rows 0..{last - first - 1}, but {start}..{stop - 1} are asked for")
        return self._rows.read(first + start, first + stop)

    def _blocks(self, split: Split) -> tuple[Block, ...]:
        start, stop = self.ranges[_known(split)]
        return tuple((max(start, g.first_row), min(stop, g.stop)) for g in self._rows.groups(start, stop))

    def _load(self, window: Window) -> Columns:
        """A window's rows, encoded; those of a split that is one window are kept for all epochs and scans."""
        if window.blocks not in self._whole:
            return self._encode(window.blocks)
        with self._keeping:
            if window.blocks not in self._kept:
                self._kept[window.blocks] = self._encode(window.blocks)
            return self._kept[window.blocks]

    def _encode(self, blocks: tuple[Block, ...]) -> Columns:
        names = self.schema.arrow(label=True).names
        parts = []
        for start, stop in blocks:
            group = self._rows.groups(start, stop)[0]
            first = group.file_row + start - group.first_row
            parts.append(
                encode(
                    self._rows.read(start, stop, names),
                    self.schema,
                    label=True,
                    where=f"{self._rows.name(group)} rows {first}..{first + stop - start - 1}",
                    first_row=start,
                    shown_row=first,
                )
            )
        encoded = concat(parts)
        del parts
        _give_back()
        return encoded


def _give_back() -> None:
    """Return to the system what Arrow and glibc hold freed: files are read in large pieces, once or once a window."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl and macOS do not
    if trim is not None:
        trim(0)


def _known(split: str) -> Split:
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    return split


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """Labelled rows of (user, item, context), from Parquet."""

    source: str
    """A named data set (`ml-100k`), or the path or URI of a Parquet file or of a folder of them."""
    schema: Schema
    """The features, label and time column."""
    split: ByTime = ByTime()
    """How rows are parted into train, valid and test."""
    train_rows: int | None = None
    """Rows to train on, the last before validation; none, or more than there are: all."""
    window_rows: int = 1_000_000
    """Rows that are held in memory and shuffled together; a split that fits is shuffled fully and read once."""
    prefetch: int = 2
    """Batches that a thread keeps ready; 0: no thread."""

    def __post_init__(self) -> None:
        if self.window_rows < 1:
            raise ConfigError(f"data.window_rows: must be at least 1, got {self.window_rows}")
        check_train_rows(self.train_rows)
        if self.prefetch < 0:
            raise ConfigError(f"data.prefetch: must be at least 0, got {self.prefetch}")

    def check_source(self) -> None:
        """Look whether a local source is there; nothing is fetched.

        Raises:
            DataError: it is not.
        """
        if self.source not in sources.NAMES and "://" not in self.source:
            source = _locate(self.source)
            if not Path(source).exists():
                raise DataError(f"{source}: no such file or folder. Check data.source")

    def open(self) -> Dataset:
        """The data set, its columns, order and split checked; a named one is downloaded if it is not in the cache.

        Raises:
            DataError: data that is missing, damaged, out of order, or does not fit the schema.
            ConfigError: no time column to split by.
        """
        rows = ParquetRows(_locate(self.source))
        check_columns(rows.schema, self.schema, label=True, where=rows.uri)
        if self.schema.time and self.schema.time not in rows.schema.names:
            near = did_you_mean(self.schema.time, rows.schema.names)
            raise DataError(f"{rows.uri}: the time column {self.schema.time!r} (schema.time) is missing{near}")
        ranges = self.split.ranges(rows, self.schema.time)
        ranges["train"] = trained_on(ranges["train"], self.train_rows)
        return Dataset(rows, self.schema, ranges, window_rows=self.window_rows, prefetch=self.prefetch)


def _locate(source: str) -> str:
    if source in sources.NAMES:
        return str(sources.get(source))
    if not source.strip():
        raise ConfigError(f"data.source: it is empty. Give a path, a URI, or one of {', '.join(sources.NAMES)}")
    near = did_you_mean(source, sources.NAMES)
    if near and "/" not in source and not source.endswith(".parquet"):
        raise DataError(f"data.source: there is no data set {source!r}{near}")
    return source
