"""Rows that chance or their users part into three splits, as one sequence in which each split lies in one piece.

So everything that reads rows by number (the order of an epoch, a cursor, the ledger) needs to know of no parting.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.footer import RowGroup
from rtrain.data.parquet import ParquetRows
from rtrain.errors import DataError
from rtrain.keyed import drawn, uniform

SPLITS = 3


class Parting(Protocol):
    """Says of every row whether it trains, validates or tests."""

    @property
    def spelled(self) -> str:
        """What tells it from others, for fingerprints."""

    def codes(self, start: int, stop: int) -> NDArray[np.int64]:
        """0, 1 or 2 for each of the rows [start, stop) as they are stored: trains, validates, tests."""


@dataclass(frozen=True, kw_only=True)
class ByChance:
    """Drawn by (seed, a row's number): nothing is stored, and a row that is appended later moves no other."""

    valid: float
    """The chance of a row to validate."""
    test: float
    """And to test."""
    seed: int

    @property
    def spelled(self) -> str:
        """Both chances and the seed."""
        return f"{self.valid} {self.test} {self.seed}"

    def codes(self, start: int, stop: int) -> NDArray[np.int64]:
        """As `Parting`."""
        chance = uniform(drawn(self.seed, np.arange(start, stop)))
        tests, trains = chance < self.test, chance >= self.test + self.valid
        codes: NDArray[np.int64] = 1 + tests.astype(np.int64) - trains
        return codes


@dataclass(frozen=True)
class Listed:
    """Said of each row, in a byte of memory."""

    every: NDArray[np.int8]
    """[N] the code of each row, as they are stored"""

    @property
    def spelled(self) -> str:
        """A hash of it all."""
        return hashlib.sha256(self.every.tobytes()).hexdigest()

    def codes(self, start: int, stop: int) -> NDArray[np.int64]:
        """As `Parting`."""
        return self.every[start:stop].astype(np.int64)


class Parted:
    """The rows of a `ParquetRows` as `ParquetRows` gives them: first all that train, then those that validate, then
    those that test, each in the order in which they are stored.

    A row group is read once for each split that it has rows of.
    """

    def __init__(self, rows: ParquetRows, parting: Parting):
        self._stored, self._parting = rows, parting
        self.uri, self.schema, self.rows = rows.uri, rows.schema, rows.rows
        counts_GS = np.array([np.bincount(self._codes(group), minlength=SPLITS) for group in rows.row_groups])
        self.sizes: tuple[int, ...] = tuple(int(n) for n in counts_GS.sum(axis=0))
        """Rows of each split."""
        groups, self._of = list[RowGroup](), list[tuple[RowGroup, int]]()
        for code in range(SPLITS):
            for group, count in zip(rows.row_groups, counts_GS[:, code], strict=True):
                if count:
                    first = groups[-1].stop if groups else 0
                    groups.append(RowGroup(first, int(count), group.file, group.index, group.file_row))
                    self._of.append((group, code))
        self.row_groups = tuple(groups)
        self._firsts = [group.first_row for group in groups]

    @property
    def stored(self) -> ParquetRows:
        """The rows as they lie in the files."""
        return self._stored

    def name(self, group: RowGroup) -> str:
        """As `ParquetRows.name`."""
        return self._stored.name(group)

    def fingerprint(self) -> str:
        """16 hex digits, of the data and of how they are parted."""
        counted = f"{self._stored.fingerprint()} {self._parting.spelled}"
        return hashlib.sha256(counted.encode()).hexdigest()[:16]

    def groups(self, start: int, stop: int) -> tuple[RowGroup, ...]:
        """What of one row group belongs to one split, for rows [start, stop)."""
        return self.row_groups[self._place(start, stop)]

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """As `ParquetRows.read`."""
        place = self._place(start, stop)
        if not self.row_groups[place]:
            return self._stored.read(0, 0, columns)
        parts = []
        for group, code in self._of[place]:
            table = self._stored.read(group.first_row, group.stop, columns)
            parts.append(table.take(pa.array(np.flatnonzero(self._codes(group) == code))))
        return pa.concat_tables(parts).slice(start - self._firsts[place.start], stop - start)

    def file_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """As `ParquetRows.file_rows`."""
        place = self._place(start, stop)
        rows = [group.file_row + np.flatnonzero(self._codes(group) == code) for group, code in self._of[place]]
        return np.concatenate(rows)[start - self._firsts[place.start] :][: stop - start]

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """Every stored row group once: its rows with the given columns (none: all), and each one's number here."""
        nexts = np.cumsum([0, *self.sizes])[:SPLITS]
        for group in self._stored.row_groups:
            codes = self._codes(group)
            numbers = np.empty(len(codes), np.int64)
            for code in range(SPLITS):
                mine = np.flatnonzero(codes == code)
                numbers[mine] = nexts[code] + np.arange(len(mine))
                nexts[code] += len(mine)
            yield self._stored.read(group.first_row, group.stop, columns), numbers

    def _place(self, start: int, stop: int) -> slice:
        if not 0 <= start <= stop <= self.rows:
            raise DataError(f"{self.uri}: rows {start}..{stop - 1} are asked for, but it has rows 0..{self.rows - 1}")
        if start == stop:
            return slice(0, 0)
        return slice(bisect_right(self._firsts, start) - 1, bisect_right(self._firsts, stop - 1))

    def _codes(self, group: RowGroup) -> NDArray[np.int64]:
        """0, 1 or 2 for each of its rows: trains, validates, tests."""
        return self._parting.codes(group.first_row, group.stop)
