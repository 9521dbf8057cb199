"""Columns of a split as one number a row: the same number for the same values, on every rank that reads the split."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Coded:
    """What each row has in one column, or in several together."""

    codes: NDArray[np.int64]
    """int64 [n]: from 0, by what comes first"""
    values: pa.Array
    """Of one column, the value of each code; of several, none."""
    counted: bool = False
    """Whether the values are numbers that say how much there is of something, not ids."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each code."""
        return np.bincount(self.codes)

    def text(self, code: int) -> str:
        """The value of a code; `(null)` where there is none."""
        value = self.values[code].as_py()
        return "(null)" if value is None else str(value)


def coded(table: pa.Table, ids: Collection[str] = ()) -> Coded:
    """All columns of the table together; a null is a value too. `ids`: columns whose numbers count nothing."""
    codes = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        one = column.dictionary_encode(null_encoding="encode").combine_chunks()
        values = one.dictionary
        codes = codes * len(values) + one.indices.to_numpy()
        if table.num_columns > 1:  # small again before the next column multiplies them
            codes = np.unique(codes, return_inverse=True)[1]
    if table.num_columns > 1:
        return Coded(codes, values[:0])
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    return Coded(codes, values, is_number and table.column_names[0] not in ids)
