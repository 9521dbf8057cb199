"""Rows of a split by its own columns: metrics whose groups are not the schema's, and metrics of a part of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.data.coded import Coded
from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.evaluation.binned import bins_of, is_binned
from rtrain.metrics.state import Metric, Partial, group_columns, some_of

MOST_VALUES = 20
"""Of a column, the values whose rows are measured apart: the most frequent ones; the others together. Of ids and words;
numbers are binned."""
OTHER = "other"


@dataclass(frozen=True)
class Columns:
    """The columns of one split, read when they are asked for and kept by the data."""

    data: Samples[Any]
    split: Split

    def told(self, of: Any) -> Any:
        """Rows with what the data know of their items, where there are items."""
        return self.data.told(of)

    def coded(self, names: tuple[str, ...]) -> Coded:
        """Of every row of the split."""
        return self.data.coded(self.split, names)

    def of(self, names: tuple[str, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: what the rows with these numbers have."""
        return self.coded(names).codes[rows - self.data.numbers(self.split).start]


def groups_of(by: tuple[str, ...], of: Any, columns: Columns | None) -> NDArray[np.int64]:
    """int64 [n]: the groups of the rows by these columns; of none, those that the rows have."""
    if not by:
        groups: NDArray[np.int64] = of.groups
        return groups
    assert columns is not None, f"groups by {', '.join(by)} where nothing is known of the columns"
    return columns.of(by, of.rows)


def partial_of(metric: Metric, of: Any, columns: Columns | None) -> Partial:
    """The metric's state of some rows, in groups of its own where it has any."""
    by = group_columns(metric)
    return metric.partial(replace(of, groups=groups_of(by, of, columns)) if by else of)


@dataclass(frozen=True)
class Slice:
    """The rows that have one value of a column, or one of several."""

    name: str
    """Such as `[gender=F]` or `[price<=12.5]`, put behind the names of metrics."""
    column: str
    codes: NDArray[np.int64]
    """Of the values."""

    def of(self, of: Any, columns: Columns) -> Any:
        """Its part of the rows of a `Scored` or of its like."""
        return some_of(of, np.isin(columns.of((self.column,), of.rows), self.codes))


def slices_of(names: tuple[str, ...], columns: Columns) -> list[Slice]:
    """By each column, its most frequent values and all others together, of numbers bins: the same on every rank."""
    found = []
    for column in names:
        coded = columns.coded((column,))
        if is_binned(coded):
            found += [Slice(f"[{text}]", column, codes) for text, codes in bins_of(column, coded)]
            continue
        often = np.lexsort((np.arange(len(coded.counts)), -coded.counts))
        for code in often[:MOST_VALUES]:
            text = coded.text(code)
            found.append(Slice(f"[{column}={repr(text) if text == OTHER else text}]", column, np.array([code])))
        if len(often) > MOST_VALUES:
            found.append(Slice(f"[{column}={OTHER}]", column, often[MOST_VALUES:]))
    return found


def numbered(slices: Sequence[Slice], of: Any, columns: Columns) -> dict[str, NDArray[np.int64]]:
    """By column of the slices, which of them each row is in: int64 [n], its place among all."""
    found = {}
    for column in {one.column: None for one in slices}:
        codes = columns.of((column,), of.rows)
        slice_of = np.full(len(columns.coded((column,)).counts), -1)
        for number, one in enumerate(slices):
            if one.column == column:
                slice_of[one.codes] = number
        found[column] = slice_of[codes]
    return found
