"""Lists of lists, such as sessions of items: read as one list a row, all inner ones one behind the other.

Shape legend: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.place import Place, first, lengths_of


def is_list(kind: pa.DataType) -> bool:
    """Of any length, of large offsets, or of a fixed length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def innermost(kind: pa.DataType) -> pa.DataType:
    """What a list holds; of a list of lists, however deep, what the inner ones hold."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def is_nested(kind: pa.DataType) -> bool:
    """Whether it is a list of lists."""
    return is_list(kind) and is_list(kind.value_type)


def one_list(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of lists of lists as one list a row (large_list); any other column is given back as it is.

    A null inner list is an empty one; what is null for a row stays so.
    """
    if not is_nested(column.type):
        return column
    chunks = [_one_list(chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.large_list(innermost(column.type)))


def _one_list(array: pa.Array) -> pa.Array:
    inner = pc.list_flatten(array)
    if is_nested(array.type.value_type):
        inner = _one_list(inner)
    nulls = array.is_null() if array.null_count else None
    outer_offsets, inner_offsets = _offsets(array), _offsets(inner)
    return pa.LargeListArray.from_arrays(pa.array(inner_offsets[outer_offsets]), pc.list_flatten(inner), mask=nulls)


def _offsets(lists: pa.Array) -> NDArray[np.int64]:
    """[N + 1]: where each list begins in `list_flatten`, which leaves null ones out."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False), out=offsets[1:])
    return offsets


def paired(
    ids: pa.ChunkedArray, beside: pa.ChunkedArray, *, what: str, name: str, of: str, at: Place
) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    """A column that has something of each id of a list: as one list a row, and their lengths [N].

    Args:
        ids: the lists as they are stored.
        beside: what is had of each id, which nests as the ids do.
        what: the feature, `name`: its column beside, `of`: what that holds, as messages call them.
        at: what messages call the rows.

    Raises:
        DataError: another number of them than of ids, or in other inner lists.
    """
    rows, flat, inner = np.arange(len(ids)), one_list(beside), ""
    while True:
        lengths, of_ids = lengths_of(beside), lengths_of(ids)
        deep, other = is_nested(ids.type), is_nested(beside.type)
        if deep != other and lengths.any() and of_ids.any():  # of what is empty any type will do
            row = int(rows[first(of_ids > 0)])
            raise at.refuse(f"{what}: {name!r}, its {of}, nests otherwise than the ids", row, ". Let both nest alike")
        if (lengths != of_ids).any():
            index = first(lengths != of_ids)
            row = int(rows[index])
            if inner:
                inner = f" in inner list {index - int(np.searchsorted(rows, row))}"
            ours, theirs = ("inner lists" if deep else "ids"), ("inner lists" if other else of)
            do = "Let both nest alike" if deep or other or inner else "Give each id its own"
            why = f", but {lengths[index]} {theirs} in {name!r}. {do}"
            raise at.refuse(f"{what} has {of_ids[index]} {ours}{inner}", row, why)
        if not (deep and other):
            return flat, lengths if flat is beside else lengths_of(flat)
        ids, beside, rows, inner = pc.list_flatten(ids), pc.list_flatten(beside), np.repeat(rows, lengths), "there"
