"""What is known of users or of items beside their ids: one row an id, read once and held in memory.

Shape legend: R rows of the table of ids.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data import sources
from rtrain.data.columns import Lists
from rtrain.data.encode import encode
from rtrain.data.parquet import ParquetRows
from rtrain.data.words import Words
from rtrain.errors import ConfigError, DataError
from rtrain.schema import ANY_LENGTH, Id, IdList, IdSequence, Many, Schema
from rtrain.text import Text

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Bins:
    """A number by the bin that it lies in: 0 where there is none, 1 below the first edge, and so on."""

    name: str
    """Column in the data."""
    edges: tuple[float, ...]
    """Where a bin begins, rising."""

    def __post_init__(self) -> None:
        if not self.edges or any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ConfigError(f"feature {self.name!r}: edges must rise, and there must be one, got {self.edges}")

    @property
    def table_rows(self) -> int:
        """Bins, the one of what is missing included."""
        return len(self.edges) + 2


@runtime_checkable
class InOrder(Protocol):
    """A feature that is several ids, made of its column, whose order says something."""

    @property
    def name(self) -> str:
        """Column in the data."""

    @property
    def table_rows(self) -> int:
        """Of its table."""

    @property
    def longest(self) -> int:
        """Most ids of a row."""

    def read(self, column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
        """Of each row its ids, list<int64>; `where`: what a message calls the table."""


@dataclass(frozen=True, kw_only=True)
class SideFeatures:
    """A table of users or of items, and those of its columns that a model is to read."""

    source: str
    """A named data set (`ml-100k`), or a Parquet file or folder anywhere; an id's rows, if several, are the same."""
    key: str
    """Column of the ids, those of the interactions."""
    features: tuple[Id | IdList | Bins | Words | Text, ...]
    """The columns; each has a table of its own. `Text` without a tokenizer is what `Words` is."""

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        for feature in self.features:
            if names.count(feature.name) > 1 or feature.name == self.key:
                raise ConfigError(f"data: the feature {feature.name!r} of {self.source} is there twice")
            if isinstance(feature, Id | Text) and feature.table:
                raise ConfigError(f"data: feature {feature.name!r} has a table of its own here. Leave out its table")
            if isinstance(feature, Id) and feature.managed:
                raise ConfigError(
                    f"data: feature {feature.name!r} is managed, which no retrieval model's tables are. Leave it out"
                )
            if isinstance(feature, IdSequence) and feature.times:
                raise ConfigError(
                    f"data: feature {feature.name!r} has times, but {self.source} has no moment that they lie before. "
                    "Leave them out"
                )
            if isinstance(feature, IdList) and feature.weights:
                raise ConfigError(
                    f"data: feature {feature.name!r} has weights, which no retrieval model reads. Leave them out"
                )
        if not names:
            raise ConfigError(f"data: {self.source} is given without a feature. Name one, or leave it out")

    @property
    def in_order(self) -> dict[str, int]:
        """Of the features whose order says something, the most ids of a row."""
        words = {feature.name: feature.longest for feature in self.features if isinstance(feature, InOrder)}
        texts = {feature.name: feature.max_length for feature in self.features if isinstance(feature, Text)}
        return words | texts

    @property
    def longest(self) -> dict[str, int]:
        """Of each feature the most ids of a row; without lists of any length."""
        found = {feature.name: 1 for feature in self.features} | self.in_order
        found |= {feature.name: feature.max_length for feature in self.features if isinstance(feature, IdList)}
        return {name: most for name, most in found.items() if most < ANY_LENGTH}

    def open(self, ids: Ids, *, rows: int, of: str) -> dict[str, Lists]:
        """Feature -> of each id 0..rows-1 its values [R]; `ids`: those that must be there; `of`: "user" or "item".

        Raises:
            DataError: a column or value that cannot be used, an id without a row, or with rows that differ.
        """
        stored = ParquetRows(str(sources.get(self.source)) if self.source in sources.NAMES else self.source)
        table = stored.read(0, stored.rows, [self.key, *(feature.name for feature in self.features)])
        plain: list[Id | Text] = []
        for feature in self.features:
            column, spec = self._plain(table.column(feature.name), feature)
            table = table.set_column(table.column_names.index(feature.name), feature.name, column)
            plain.append(spec)
        schema = Schema(features=(Id(name=self.key, rows=rows), *plain))
        found = encode(table, schema, label=False, where=self.source, first_row=0)
        key = found.singles[:, 0].astype(np.int64)
        lists, singles = iter(found.lists), iter(found.singles.T[1:])
        columns = {
            feature.name: next(lists) if isinstance(feature, Many) else Lists.of(next(singles), np.ones_like(key))
            for feature in plain
        }
        first = np.full(rows, -1)
        first[key[::-1]] = np.arange(len(key))[::-1]
        missing = np.setdiff1d(ids, key)
        if len(missing):
            raise DataError(
                f"{self.source}: {of} {missing[0]} has interactions but no row with that {self.key} ({len(missing)} "
                f"are without one). Add the rows, or give the {of}s' numbers in {self.key}"
            )
        for name, values in columns.items():
            self._check_alike(name, values, key, first[key])
        there = np.flatnonzero(first >= 0)
        return {name: _by_id(values, there, first[there], rows) for name, values in columns.items()}

    def _plain(self, column: pa.ChunkedArray, feature: Id | Text | Bins | InOrder) -> tuple[pa.ChunkedArray, Id | Text]:
        """The feature as ids, or a list of ids, and the column of them; a text as it is."""
        if isinstance(feature, Bins):
            return pa.chunked_array([self._binned(column, feature)]), Id(name=feature.name, rows=feature.table_rows)
        if isinstance(feature, InOrder):
            return feature.read(column, self.source), IdList(name=feature.name, rows=feature.table_rows)
        return column, feature

    def _binned(self, column: pa.ChunkedArray, feature: Bins) -> Ids:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(
                f"{self.source}: column {feature.name!r} is {column.type}, but Bins need numbers. Cast it, or give Id"
            )
        values = column.cast(pa.float64()).to_numpy()  # a null becomes nan
        bins: Ids = np.where(np.isnan(values), 0, 1 + np.searchsorted(feature.edges, values, side="right"))
        return bins

    def _check_alike(self, name: str, values: Lists, key: Ids, first: Ids) -> None:
        """An id's rows say the same as its first one."""
        of_first = values.select(first)
        differ = of_first.lengths != values.lengths
        if not differ.any():
            wrong = np.flatnonzero(of_first.values != values.values)
            differ[np.searchsorted(values.offsets, wrong, side="right") - 1] = True
        if differ.any():
            row = int(differ.argmax())
            raise DataError(
                f"{self.source}: {self.key} {key[row]} has another {name!r} at row {row} than at row {first[row]}. "
                "Give one row an id"
            )


def _by_id(values: Lists, ids: Ids, at: Ids, rows: int) -> Lists:
    """Of each id 0..rows-1 the list of its row; `ids`, rising, have theirs `at`; the others' are empty."""
    lengths = np.zeros(rows, np.int64)
    kept = values.select(at)
    lengths[ids] = kept.lengths
    return Lists.of(kept.values, lengths)


@dataclass(frozen=True)
class Looked:
    """A side feature's ids for the rows of a batch."""

    values: Ids
    lengths: NDArray[np.int32]
    """[B]"""
    place: Ids
    """[B, T]: to which of the row's users or items each value belongs, -1 behind a row's end"""


def looked_up(feature: Lists, asked: Lists) -> Looked:
    """What a feature says of each of the ids that the rows ask for, one after the other."""
    of_each = feature.select(asked.values)
    offsets = of_each.offsets[asked.offsets]
    lengths = np.diff(offsets)
    number = np.arange(len(asked.values)) - np.repeat(asked.offsets[:-1], asked.lengths)
    place = np.full((len(lengths), max(1, int(lengths.max(initial=0)))), -1)
    place[np.arange(place.shape[1]) < lengths[:, None]] = np.repeat(number, of_each.lengths)
    return Looked(of_each.values.astype(np.int64), lengths.astype(np.int32), place)
