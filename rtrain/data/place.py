"""Where a value stands, for messages, and how a column of values is read whatever holds it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.errors import DataError


class Place:
    """A table and its rows' numbers, as messages name them."""

    def __init__(self, where: str, shown: NDArray[np.integer]):
        self.where, self.shown = where, shown

    def refuse(self, what: str, row: int, why: str) -> DataError:
        """`what` is at `row` of the table: the error to raise."""
        return DataError(f"{self.where}: {what} at row {self.shown[row]}{why}")


def of_group(file: str, group: int, shown: NDArray[np.integer]) -> str:
    """What messages call rows of a file's row group; `shown`: their numbers in the file."""
    return f"{file} rows {shown[0]}..{shown[-1]} (row group {group})"


def first(mask: NDArray[np.bool_]) -> int:
    """Index of the first that is true."""
    return int(mask.argmax())


def plain(column: pa.ChunkedArray, when_null: pa.DataType) -> pa.ChunkedArray:
    """The column with dictionaries decoded, and a column of nulls only given a type."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(when_null) if pa.types.is_null(column.type) else column


def lengths_of(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    """[N]; 0 of a null list."""
    if pa.types.is_null(lists.type):
        return np.zeros(len(lists), np.int64)
    lengths: NDArray[np.int64] = pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)
    return lengths
