"""Interactions of users with items, from a named data set or from Parquet anywhere."""

import ctypes
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from rtrain.batch import Batch, times
from rtrain.data import criteo, sources
from rtrain.data.baseline import Baseline
from rtrain.data.blank import blank_rows
from rtrain.data.boosted import boosted_of, without_boosting
from rtrain.data.by_user import user_column
from rtrain.data.coded import Coded, coded
from rtrain.data.columns import Columns, concat
from rtrain.data.cursor import batches_per_epoch, check_batches
from rtrain.data.encode import check_columns, encode
from rtrain.data.footers import refuse_by_footers
from rtrain.data.holdout import LeaveOneOut, Random, RandomPerUser
from rtrain.data.leakage import Leakage, refuse_later, refuse_shared_rows
from rtrain.data.made import sources_of, with_parts
from rtrain.data.means import means_of
from rtrain.data.order import Block, Order, Window, most_strata
from rtrain.data.parquet import ParquetRows
from rtrain.data.parted import Parted
from rtrain.data.place import of_group
from rtrain.data.protocol import Data
from rtrain.data.reader import Ready, as_it_is, scanned
from rtrain.data.samples import SPLITS, Samples
from rtrain.data.split import ByTime, Ranges, Split, check_train_rows, refuse_disorder, trained_on
from rtrain.data.vocabularies import known_of
from rtrain.encodings import PiecewiseLinear, Quantiles
from rtrain.errors import ConfigError, DataError, did_you_mean
from rtrain.moment import Age
from rtrain.rounding import ceil_div
from rtrain.schema import Dense, Feature, Id, IdList, Schema
from rtrain.vector import Embedding

MOST_ROWS = 1_000_000
"""Training rows that edges are taken from."""
GIVE_BACK_ROWS = 1 << 20
"""Least rows that are decoded between two times that freed memory goes back to the system."""


class Dataset(Samples[Batch]):
    """Rows of Parquet files, typed by a schema."""

    split_field = "data.split"

    def __init__(
        self,
        rows: ParquetRows | Parted,
        schema: Schema,
        ranges: Ranges,
        *,
        window_rows: int,
        prefetch: int,
        leakage: Leakage,
        in_time: bool,
    ):
        """`in_time`: whether all rows that train are older than all that validate, and those than all that test."""
        start, stop = ranges["train"]
        self._rows, self._window_rows = rows, window_rows
        self.strata = Order(self._blocks(start, stop), seed=0, window_rows=window_rows).strata
        """Parts of the rows that train, of which a rank reads its own alone; 1: every rank reads all."""
        # What a cursor means depends on the rows, on where the splits part, and on what is shuffled together.
        together = window_rows if self.strata == 1 else [window_rows, self.strata]
        counted = [rows.fingerprint(), ranges, together if stop - start > window_rows else None]
        super().__init__(ranges, hashlib.sha256(json.dumps(counted).encode()).hexdigest()[:16], prefetch)
        self.schema = schema
        self.inputs = ("dense", *(times(feature.name) for feature in schema.timed))
        self._leakage, self._in_time = leakage, in_time
        self._whole = {self._blocks(*self._range(split)) for split in SPLITS}
        self._decoded = 0
        """Rows since memory was last given back."""
        self._fits: pa.Schema | None = None
        """Columns of the row group that was read last: the next one's are the same."""
        self._kept: dict[tuple[Block, ...], Columns] = {}
        self._keeping = threading.Lock()
        self._coded: dict[tuple[Split, tuple[str, ...]], Coded] = {}

    def baselines(self, metrics: object, boosting_rows: int) -> tuple[Baseline, ...]:
        """As `Samples`: means of user and item, of the item, and gradient boosting; of the first label."""
        return (*means_of(self), *boosted_of(self, boosting_rows))

    def remarks(self, boosting_rows: int, ranks: int = 1) -> tuple[str, ...]:
        """As `Samples`: row groups that ranks cannot share, and boosting that is asked for and cannot be."""
        return (*self._read_by_several(ranks), *without_boosting(self, boosting_rows))

    def _read_by_several(self, ranks: int) -> tuple[str, ...]:
        blocks = self._blocks(*self._range("train"))
        rows, sizes = self.rows("train"), [stop - start for start, stop in blocks]
        if self.strata >= ranks > 1 or rows <= self._window_rows or (ranks == 1 and self.strata > 1):
            return ()
        if self.strata > 1:
            wider = self._window_rows
            while most_strata(blocks, wider) < ranks and wider < rows:
                wider *= 2
            way = f"Raise data.window_rows to {wider:,}" if wider < rows else "Write more and smaller row groups"
            return (
                f"each of {ranks} ranks reads 1/{self.strata} of the rows that train, and not 1/{ranks}: "
                f"data.window_rows ({self._window_rows:,}), of all ranks together, makes {self.strata} parts of row "
                f"groups of up to {max(sizes):,} rows. {way}",
            )
        return (
            f"every rank reads all {rows:,} rows that train: their {len(sizes):,} row groups, of up to {max(sizes):,} "
            f"rows, cannot be dealt so that data.window_rows ({self._window_rows:,}) rows in memory have one of each "
            f"rank. {'Write row groups of 65,536 rows, or raise' if max(sizes) > 65_536 else 'Raise'} data.window_rows",
        )

    def refuse_rows(self) -> None:
        """As `Samples`; of a split by time no row is in two splits, for rows of one moment stay together."""
        stored = self._rows.stored
        first, last = self.ranges["train"][0], self.ranges["test"][1]
        used = stored.groups(first, last) if self._in_time else stored.row_groups
        refuse_by_footers(stored, used, self.schema)
        if self._in_time:
            refuse_disorder(self._rows, self.schema.time)
        for split in SPLITS:  # what is more than a window is refused where it is read
            if self.rows(split) <= self._window_rows:
                for block in self._blocks(*self._range(split)):
                    self._encode((block,))
        if self._leakage == "allow":
            return
        if not self._in_time:
            return refuse_shared_rows(self._rows, self.ranges, self.schema)
        time, ends = self.schema.time, []
        for split in SPLITS:
            last = self.rows(split) - 1
            first, latest = (self.raw(split, row, row + 1, [time])[time][0].as_py() for row in (0, last))
            ends.append((split, first, latest))
        refuse_later(ends, source=self._rows.uri)

    def raw(self, split: Split, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Rows [start, stop) of the split as they are stored; none: all columns."""
        first, last = self._range(split)
        if not 0 <= start <= stop <= last - first:
            raise DataError(f"split {split!r} has rows 0..{last - first - 1}, but {start}..{stop - 1} are asked for")
        return self._rows.read(first + start, first + stop, columns)

    def refuse_columns(self, names: Sequence[str], asker: str) -> None:
        """As `Samples`: any column that the files have, of the schema or not, but for lists; and hours and days."""
        there = self._rows.schema
        for name in sources_of(names, self.schema):
            if name not in there.names:
                near = did_you_mean(name, there.names) or f". The columns are {', '.join(there.names)}"
                raise ConfigError(f"{asker}: the data have no column {name!r}{near}")
            if pa.types.is_nested(there.field(name).type):
                raise ConfigError(
                    f"{asker}: column {name!r} is {there.field(name).type}, not one value a row. Name another"
                )

    def coded(self, split: Split, names: tuple[str, ...]) -> Coded:
        """As `Samples`; kept, for every evaluation asks."""
        if (split, names) not in self._coded:
            table = self.raw(split, 0, self.rows(split), sources_of(names, self.schema))
            table = with_parts(table, names, self.schema, self._rows.uri)
            self._coded[split, names] = coded(table, ids=[f.name for f in self.schema.ids])
        return self._coded[split, names]

    def scan(
        self, split: Split, *, global_batch: int, rank: int, world_size: int, ready: Ready = as_it_is
    ) -> Iterator[Batch]:
        """As `Samples`; of a split that is more than a window, a rank reads a contiguous share of the rows alone."""
        rows, each = self.rows(split), global_batch // world_size
        if rows <= self._window_rows or world_size == 1 or each < 2:
            return super().scan(split, global_batch=global_batch, rank=rank, world_size=world_size, ready=ready)
        check_batches(rows, global_batch, rank, world_size)
        count = batches_per_epoch(ceil_div(rows, world_size), each)
        ends = [self._range(split)[0] + n * rows // world_size for n in range(world_size + 1)]
        cuts = np.outer(np.diff(ends), np.arange(count + 1)) // count
        together = np.diff(cuts, axis=1).sum(axis=0).tolist()
        own = Order(self._blocks(ends[rank], ends[rank + 1]), seed=None, window_rows=self._window_rows)
        return self._ahead(scanned(self._load, own, cuts[rank].tolist(), together, ready))

    def _blocks(self, start: int, stop: int) -> tuple[Block, ...]:
        return tuple((max(start, g.first_row), min(stop, g.stop)) for g in self._rows.groups(start, stop))

    def _order(self, split: Split, seed: int | None) -> Order:
        return Order(self._blocks(*self._range(split)), seed=seed, window_rows=self._window_rows)

    def _load(self, window: Window) -> Columns:
        """A window's rows, encoded; those of a split that is one window are kept for all epochs and scans."""
        if window.blocks not in self._whole:
            return self._encode(window.blocks)
        with self._keeping:
            if window.blocks not in self._kept:
                self._kept[window.blocks] = self._encode(window.blocks)
            return self._kept[window.blocks]

    def written_since(self, seconds: float) -> list[str]:
        """As `Samples`."""
        return self._rows.stored.written_since(seconds)

    def let_go(self, split: Split) -> None:
        """As `Samples`."""
        with self._keeping:
            self._kept.pop(self._blocks(*self._range(split)), None)
        _give_back()

    def _encode(self, blocks: tuple[Block, ...]) -> Columns:
        names = self.schema.arrow(label=True).names
        parts = []
        for start, stop in blocks:
            group, shown = self._rows.groups(start, stop)[0], self._rows.file_rows(start, stop)
            table = self._rows.read(start, stop, names)
            parts.append(
                encode(
                    table,
                    self.schema,
                    label=True,
                    where=of_group(self._rows.name(group), group.index, shown),
                    first_row=start,
                    shown=shown,
                    fits=self._fits,
                )
            )
            self._fits = table.schema
            del table  # before the next one is read
        encoded = concat(parts)
        del parts
        self._decoded += encoded.rows
        # What Arrow freed serves the next row group; pages that are given back have to be faulted in again, which costs
        # as much as the decoding, so not after each group.
        if self._decoded >= max(self._window_rows, GIVE_BACK_ROWS) or blocks in self._whole:
            self._decoded = 0
            _give_back()
        return encoded


def _give_back() -> None:
    """Return to the system what Arrow and glibc hold freed: files are read in large pieces, once or once a window."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl and macOS do not
    if trim is not None:
        trim(0)


@dataclass(frozen=True, kw_only=True)
class Interactions(Data):
    """Labelled rows of (user, item, context), from Parquet."""

    gives: ClassVar[Any] = Batch

    source: str
    """A named data set (`ml-100k`), or the path or URI of a Parquet file or of a folder of them."""
    schema: Schema
    """The features, label and time column."""
    split: ByTime | LeaveOneOut | RandomPerUser | Random = ByTime()
    """How rows are parted into train, valid and test; a user is what `schema.group` says, or the user's one `Id`."""
    train_rows: int | None = None
    """Rows to train on, the last before validation; none, or more than there are: all."""
    window_rows: int = 1 << 20
    """Rows that all ranks together hold in memory and shuffle; a split that fits is shuffled fully and read once."""
    leakage: Leakage = "refuse"
    """refuse: a run does not start when two splits have a row in common, equal in all columns that the schema names;
    allow: it does."""
    prefetch: int = 2
    """Batches that a thread keeps ready, for a GPU in its memory; 0: no thread."""

    def __post_init__(self) -> None:
        if self.window_rows < 1:
            raise ConfigError(f"data.window_rows: must be at least 1, got {self.window_rows}")
        check_train_rows(self.train_rows)
        if self.prefetch < 0:
            raise ConfigError(f"data.prefetch: must be at least 0, got {self.prefetch}")

    @property
    def facts(self) -> Schema:
        """What a model may ask of the data before they are opened."""
        return self.schema

    def blank(self, rows: int, global_rows: int) -> Batch:
        """See `Data`; of a list without `max_length` it has `mean_length` ids a row, or one."""
        return blank_rows(self.schema, rows, global_rows)

    @property
    def group(self) -> str:
        """The feature whom rows are ranked for; empty where there is none."""
        return self.schema.group

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the schema with one value a row."""
        schema = self.schema
        single = [f.name for f in schema.features if not isinstance(f, IdList | Embedding | Age)]
        named = single + [one.name for one in schema.labels]
        return (*named, *(name for name in (schema.time, schema.weight, schema.teacher) if name and name not in named))

    @property
    def metric_prefixes(self) -> tuple[str, ...]:
        """Of the names of each label's metrics."""
        return self.schema.metric_prefixes

    def encoded(
        self,
        kind: type[PiecewiseLinear | Quantiles] = PiecewiseLinear,
        *,
        bins: int = 16,
        features: tuple[str, ...] = (),
    ) -> "Interactions":
        """These data with numbers encoded: edges at the quantiles of training rows, of the last million at most.

        `features`: which numbers; none: all that have no encoding yet. Opens the data.

        Raises:
            ConfigError: a name that is no `Dense` feature, or bins below 1.
            DataError: as `open`; or a feature that is the same in all those rows.
        """
        numbers = [f for f in self.schema.features if isinstance(f, Dense)]
        names = [f.name for f in numbers]
        for name in features:
            if name not in names:
                raise ConfigError(f"encoded: {name!r} is no Dense feature of the schema{did_you_mean(name, names)}")
        if bins < 1:
            raise ConfigError(f"encoded: bins must be at least 1, got {bins}")
        wanted = [f.name for f in numbers if (f.name in features if features else not f.encoding)]
        data = self.open()
        rows = data.rows("train")
        seen = data.raw("train", max(0, rows - MOST_ROWS), rows, wanted)

        def with_edges(feature: Feature) -> Feature:
            if not isinstance(feature, Dense) or feature.name not in wanted:
                return feature
            try:
                made = kind.of(seen.column(feature.name).cast(pa.float64()).drop_null().to_numpy(), bins)
            except DataError as error:
                raise DataError(f"feature {feature.name!r}: {error}") from None
            return replace(feature, mean=0.0, std=1.0, encoding=made)

        return replace(self, schema=replace(self.schema, features=tuple(map(with_edges, self.schema.features))))

    def absolute(self) -> Self:
        """As `Data`; of a text of Criteo's too."""
        text = self.source.removeprefix(criteo.OF_TEXT)
        if text != self.source and "://" not in text:
            return replace(self, source=criteo.OF_TEXT + str(Path(text).absolute()))
        return super().absolute()

    def check_source(self) -> None:
        """Look whether a local source is there; nothing is fetched.

        Raises:
            DataError: it is not.
        """
        if "://" not in self.source and self.source not in sources.NAMES:
            text = self.source.startswith(criteo.OF_TEXT)
            source = self.source.removeprefix(criteo.OF_TEXT) if text else _locate(self.source)
            if not Path(source).exists():
                raise DataError(f"{source}: no such file or folder. Check data.source")

    def open(self) -> Dataset:
        """The data set, its columns, order and split checked; a named one is downloaded if it is not in the cache.

        Raises:
            DataError: data that is missing, damaged, out of order, or does not fit the schema.
            ConfigError: no time column to split by.
        """
        stored = ParquetRows(_locate(self.source))
        check_columns(stored.schema, self.schema, label=True, where=stored.uri)
        for file in self.schema.tokenizers.values():
            file.check()
        if self.schema.time and self.schema.time not in stored.schema.names:
            near = did_you_mean(self.schema.time, stored.schema.names)
            raise DataError(f"{stored.uri}: the time column {self.schema.time!r} (schema.time) is missing{near}")
        for feature in self.schema.ids:
            if isinstance(feature, Id) and feature.vocabulary_file:
                known_of(feature.vocabulary_file)  # one that is not there, or another version, is told now
        rows, ranges = self.split.part(stored, self.schema.time, user_column(self.schema))
        ranges["train"] = trained_on(ranges["train"], self.train_rows)
        return Dataset(
            rows,
            self.schema,
            ranges,
            window_rows=self.window_rows,
            prefetch=self.prefetch,
            leakage=self.leakage,
            in_time=self.split.in_time,
        )


def _locate(source: str) -> str:
    if sources.is_named(source):
        return str(sources.get(source))
    if not source.strip():
        raise ConfigError(f"data.source: it is empty. Give a path, a URI, or one of {', '.join(sources.NAMES)}")
    near = did_you_mean(source, sources.NAMES)
    if near and "/" not in source and not source.endswith(".parquet") and not Path(source).exists():
        raise DataError(f"data.source: there is no data set {source!r}{near}")
    return source
