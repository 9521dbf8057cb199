"""Rows of a table as 64 bits each: equal rows have equal bits, whatever file or row group they lie in.

Shape legend: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.keyed import Words, drawn

NULL = np.uint64(0x9E6C63D0676A9A99)
"""Stands for a value that is not there."""
BYTES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def hashes(table: pa.Table) -> Words:
    """uint64 [N], of all columns in their order; two rows that differ agree with a chance of 2**-64."""
    columns = [_of_column(column) for column in table.columns]
    return np.broadcast_to(drawn(*columns), (table.num_rows,))


def into_rows(column: pa.ChunkedArray, rows: int) -> NDArray[np.integer]:
    """[N]: ids 1..rows-1 by each value's hash, 0 of one that is not there; int32 if no id is larger."""
    found = (hashes(pa.table({"value": column})) % np.uint64(rows - 1)).astype(np.int64) + 1
    found[pc.is_null(column).to_numpy()] = 0
    return found.astype(np.int32 if rows <= 2**31 else np.int64, copy=False)


def into_keys(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """[N]: 63 bits of each value, above 0, of which two values agree with a chance of 2**-63; 0 of one not there."""
    found = (hashes(pa.table({"value": column})) >> np.uint64(1)).astype(np.int64)
    found[found == 0] = 1
    found[pc.is_null(column).to_numpy()] = 0
    return found


def _of_column(column: pa.ChunkedArray) -> Words:
    chunks = [_of_array(chunk) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.uint64), *chunks])


def _of_array(array: pa.Array) -> Words:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _of_array(array.dictionary_decode())
    if pa.types.is_fixed_size_list(kind):
        return _of_array(array.cast(pa.list_(kind.value_type)))
    if kind in BYTES:
        found = _of_bytes(array.cast(pa.large_binary()))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        found = _joined(_of_array(array.values.slice(offsets[0], offsets[-1] - offsets[0])), offsets - offsets[0])
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        wide = pa.uint64() if pa.types.is_unsigned_integer(kind) else pa.int64()
        found = drawn(array.cast(wide).fill_null(0).to_numpy())
    elif pa.types.is_floating(kind):
        values = array.cast(pa.float64()).fill_null(0.0).to_numpy() + 0.0  # -0 is 0
        found = drawn(values.view(np.uint64))
    elif pa.types.is_temporal(kind) and kind.bit_width == 64:
        found = drawn(array.cast(pa.int64()).fill_null(0).to_numpy())
    else:
        found = _of_bytes(array.cast(pa.string()).cast(pa.large_binary()))
    missing = pc.is_null(array).to_numpy(zero_copy_only=False)
    return np.where(missing, NULL, found)


def _of_bytes(array: pa.Array) -> Words:
    """Of large_binary."""
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    every = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return _joined(every[offsets[0] : offsets[-1]].astype(np.uint64), offsets - offsets[0])


def _joined(values: Words, offsets: NDArray[np.integer]) -> Words:
    """Of each row's values, by their order: values[offsets[n]:offsets[n + 1]]."""
    lengths = np.diff(offsets)
    place = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
    summed = np.concatenate([np.zeros(1, np.uint64), np.cumsum(drawn(place, values), dtype=np.uint64)])
    return drawn(lengths, summed[offsets[1:]] - summed[offsets[:-1]])
