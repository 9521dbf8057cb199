"""Rows that chance parts into three splits, as one sequence in which each split lies in one piece.

So everything that reads rows by number (the order of an epoch, a cursor, the ledger) needs to know of no chance.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.keyed import drawn, uniform
from rtrain.data.parquet import ParquetRows, RowGroup
from rtrain.errors import DataError

SPLITS = 3


class Parted:
    """The rows of a `ParquetRows` as `ParquetRows` gives them: first all that train, then those that validate, then
    those that test, each in the order in which they are stored.

    Which split a row belongs to is drawn by (seed, its number): nothing is stored, and a row that is appended
    later moves no other. A row group is read once for each split that it has rows of.
    """

    def __init__(self, rows: ParquetRows, *, valid: float, test: float, seed: int):
        """`valid`, `test`: the chance of a row to validate, and to test."""
        self._stored, self._valid, self._test, self._seed = rows, valid, test, seed
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
        counted = f"{self._stored.fingerprint()} {self._valid} {self._test} {self._seed}"
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
        chance = uniform(drawn(self._seed, np.arange(group.first_row, group.stop)))
        tests, trains = chance < self._test, chance >= self._test + self._valid
        codes: NDArray[np.int64] = 1 + tests.astype(np.int64) - trains
        return codes
