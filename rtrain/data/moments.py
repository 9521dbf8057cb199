"""Columns of moments as whole seconds since 1970, and how long before its row each id of a sequence was had.

Shape legend: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.columns import Lists
from rtrain.data.nested import paired
from rtrain.data.place import Place, first, plain
from rtrain.moment import FIRST_SECOND, LAST_SECOND
from rtrain.schema import IdSequence

Seconds = NDArray[np.int64]


def second_of(kind: pa.DataType) -> int:
    """How many of a time column's units make a second: 1 of plain numbers, and of dates, which are read as seconds."""
    if pa.types.is_timestamp(kind):
        return {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    return 1


def in_seconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 of numbers, timestamps or dates, a null as it is; what is of a part of a second is of its beginning.

    Of lists, large lists; a null list becomes an empty one.
    """
    if pa.types.is_null(column.type):
        return column.cast(pa.int64())
    if pa.types.is_nested(column.type):
        offsets = Lists.of(np.empty(0, np.int64), pc.list_value_length(column).fill_null(0).to_numpy()).offsets
        values = in_seconds(pc.list_flatten(column)).combine_chunks()
        return pa.chunked_array([pa.LargeListArray.from_arrays(pa.array(offsets), values)])
    column = plain(column, pa.int64())
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_floating(column.type):
        column = pc.floor(column.cast(pa.float64()))
    second, whole = second_of(column.type), column.cast(pa.int64())
    if second == 1:
        return whole
    values, nulls = whole.fill_null(0).to_numpy() // second, pc.is_null(whole).to_numpy()
    return pa.chunked_array([pa.array(values, mask=nulls)])


def moments(column: pa.ChunkedArray, name: str, at: Place) -> Seconds:
    """[N]: each row's own moment.

    Raises:
        DataError: a row without one, or one of no year that there is.
    """
    return _checked(_each_in_seconds(column, f"time {name!r}", at), f"time {name!r}", "is null", at, _rows(column))


def moments_or_null(
    column: pa.ChunkedArray, what: str, at: Place, *, fill: str | None
) -> tuple[Seconds, NDArray[np.bool_]]:
    """Moments [N], and whether there is none, where it is 0; `fill`: how nulls are let through; none: they are.

    Raises:
        DataError: a null that is not let through, or a moment of no year that there is.
    """
    found = _each_in_seconds(column, what, at)
    nulls: NDArray[np.bool_] = pc.is_null(found).to_numpy()
    if fill and nulls.any():
        raise at.refuse(f"{what} is null", first(nulls), f". Give {fill}, or fill the column")
    return _checked(found.fill_null(0), what, "is null", at, _rows(column)), nulls


def _each_in_seconds(column: pa.ChunkedArray, what: str, at: Place) -> pa.ChunkedArray:
    """`in_seconds` of one moment a row; a float that is none is refused."""
    column = plain(column, pa.int64())
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).fill_null(0.0).to_numpy()
        wrong = ~((values >= FIRST_SECOND) & (values < LAST_SECOND + 1))
        if wrong.any():
            row, why = first(wrong), "; it must be seconds since 1970, of a year from 1 to 9999"
            raise at.refuse(f"{what} is {values[row]}", row, why)
    return in_seconds(column)


def _rows(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.arange(len(column))


def ago(ids: pa.ChunkedArray, column: pa.ChunkedArray, feature: IdSequence, moment: Seconds, at: Place) -> Lists:
    """Seconds between each id of a sequence and its row's own moment, of the newest `max_length`.

    Args:
        ids: the sequence as it is stored.
        column: its times, `feature.times`.
        feature: which sequence.
        moment: [N], as `moments`.
        at: what messages call the rows.

    Raises:
        DataError: another number of times than of ids, or in other inner lists, or times that fall or lie behind the
            row's own moment.
    """
    what = f"feature {feature.name!r}"
    column, lengths = paired(ids, column, what=what, name=feature.times, of="times", at=at)
    lists = Lists.of(np.empty(0, np.int64), lengths)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    nothing = pa.types.is_null(column.type)
    flat = pa.chunked_array([], pa.int64()) if nothing else in_seconds(pc.list_flatten(column))
    times = _checked(flat, f"{what}: its times {feature.times!r}", "have a null", at, rows)
    falls = (times[1:] < times[:-1]) & (rows[1:] == rows[:-1])
    if falls.any():
        index = first(falls)
        what += f": its times {feature.times!r} fall from {times[index]} to {times[index + 1]}"
        raise at.refuse(what, int(rows[index]), "; they must rise. Sort ids and times together, oldest first")
    before = moment[rows] - times
    if (before < 0).any():
        index = first(before < 0)
        what += f": its times {feature.times!r} hold {times[index]}"
        why = f", behind the row's own moment, {moment[rows[index]]}: the future. Leave out what came later"
        raise at.refuse(what, int(rows[index]), why)
    narrow = before.astype(np.int32) if before.max(initial=0) < 2**31 else before
    kept = np.minimum(lengths, feature.max_length)
    return Lists(narrow, lists.offsets).cut(lists.offsets[1:] - kept, kept)


def _checked(column: pa.ChunkedArray, what: str, null: str, at: Place, rows: NDArray[np.integer]) -> Seconds:
    """Seconds of which there is no null, and none of another unit; `rows`: the row of each."""
    if column.null_count:
        raise at.refuse(f"{what} {null}", int(rows[first(pc.is_null(column).to_numpy())]), ". Fill it, or drop the row")
    seconds: Seconds = column.to_numpy()
    wrong = (seconds < FIRST_SECOND) | (seconds > LAST_SECOND)
    if wrong.any():
        index = first(wrong)
        why = ", which in seconds since 1970 is of no year from 1 to 9999. Divide it, if it counts parts of a second"
        raise at.refuse(f"{what} {'is' if null == 'is null' else 'hold'} {seconds[index]}", int(rows[index]), why)
    return seconds
