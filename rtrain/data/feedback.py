"""Who had what, in which order: the positive interactions of users with items, held in memory.

Shape legend: N interactions, U users.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.moments import second_of
from rtrain.data.parquet import ParquetRows
from rtrain.errors import DataError, did_you_mean, one_line

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Feedback:
    """Interactions sorted by user, each user's oldest first; those of one moment in the order of the source."""

    user: Ids
    """[N]"""
    item: Ids
    """[N]"""
    time: Ids
    """[N] seconds, or places in the source where it has no times"""
    timed: bool
    """Whether `time` is the data's own."""
    without: int = 0
    """Users of the source that have no positive: rows of theirs there are, all rated too low."""
    names: Mapping[str, pa.Array] = field(default_factory=dict)
    """Of "user" and "item", where they were numbered here: what each number stands for."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all of it."""
        digest = hashlib.sha256()
        for part in (self.user, self.item, self.time):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]

    @classmethod
    def of(
        cls, user: Ids, item: Ids, time: NDArray[Any] | None, names: Mapping[str, pa.Array] | None = None
    ) -> "Feedback":
        """From columns in any order."""
        when = np.arange(len(user)) if time is None else time
        order = np.lexsort((when, user))  # stable: what is of one moment stays in its order
        return cls(user[order], item[order], when[order], time is not None, names=names or {})

    def starts(self) -> tuple[Ids, Ids]:
        """The users that there are, [U], and where each one's interactions begin, [U + 1]."""
        users, first = np.unique(self.user, return_index=True)
        return users, np.append(first, len(self.user))


def from_parquet(
    uri: str, *, user: str, item: str, time: str, rating: str, at_least: float | None, raw: bool = False
) -> Feedback:
    """The named columns; `time` may be empty. Of rows with a `rating` those of `at_least` so much.

    `raw`: users and items are any values, and numbered here: see `numbered`.

    Raises:
        DataError: a column that is missing, not of whole numbers, or has nulls.
    """
    rows = ParquetRows(uri)
    columns = {"data.user": user, "data.item": item, "data.time": time, "data.rating": rating}
    for where, name in columns.items():
        if name and name not in rows.schema.names:
            near = did_you_mean(name, rows.schema.names)
            has = near or ". The columns are " + ", ".join(rows.schema.names)
            raise DataError(f"{uri}: there is no column {name!r} ({where}){has}")
    named = [name for name in columns.values() if name]
    if twice := [name for name in named if named.count(name) > 1]:
        fields = " and ".join(field for field, name in columns.items() if name == twice[0])
        raise DataError(f"{uri}: column {twice[0]!r} is named by {fields}. Give each its own")
    table = rows.read(0, rows.rows, named)
    without = 0
    if at_least is not None:
        kind = table.schema.field(rating).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(f"{uri}: column {rating!r} (data.rating) is {kind}; numbers are needed. Cast it")
        most = pc.max(table.column(rating)).as_py()
        if most is None or most < at_least:
            raise DataError(
                f"{uri}: no row has a {rating!r} (data.rating) of {at_least:g} (data.at_least) or more; the highest is "
                f"{most}. Lower it"
            )
        before = pc.count_distinct(table.column(user)).as_py()
        table = table.filter(pc.greater_equal(table.column(rating), at_least))
        without = before - pc.count_distinct(table.column(user)).as_py()
    for name in [name for name in (user, item, time) if name and table.column(name).null_count]:
        where = found_at(uri, name, None, rating=rating, at_least=at_least)
        raise DataError(f"{uri}: {name!r} is null at {where}. Fill it, or drop the row")
    when, second = (_times(table, time, uri), second_of(table.column(time).type)) if time else (None, 1)
    if raw:
        found = _of_raw(table.column(user), table.column(item), when)
    else:
        found = Feedback.of(_whole(table, user, uri), _whole(table, item, uri), when)
    return replace(found, time=(found.time // second).astype(np.int64), without=without)


def found_at(uri: str, name: str, value: int | None, *, rating: str, at_least: float | None) -> str:
    """The file and row, as messages name them, where a column first has a value (none: a null) in a positive."""
    rows = ParquetRows(uri)
    for group in rows.row_groups:
        table = rows.read(group.first_row, group.stop, [name, rating] if rating else [name])
        there = pc.is_null(table[name]) if value is None else pc.equal(table[name], value)
        if rating:
            there = pc.and_(there, pc.greater_equal(table[rating], at_least))
        if (row := pc.index(there, True).as_py()) >= 0:
            return f"row {group.file_row + row} of {rows.name(group)}"
    return "a row that is gone by now"


def _times(table: pa.Table, name: str, uri: str) -> NDArray[Any]:
    """int64 of integers, timestamps and dates, in their unit, and float64 of floats: nothing of their order is lost."""
    column = table.column(name)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_floating(column.type):
        values: NDArray[np.float64] = column.to_numpy().astype(np.float64)
        if not (np.abs(values) < 2.0**63).all():  # nor is nan
            raise DataError(f"{uri}: column {name!r} (data.time) has numbers that are no time. Fill them, or drop them")
        return values
    if not (pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type)):
        need = "seconds (numbers) or timestamps are needed. Cast it"
        raise DataError(f"{uri}: column {name!r} (data.time) is {column.type}; {need}")
    return _numbers(column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column, name, uri)


def _whole(table: pa.Table, name: str, uri: str) -> Ids:
    column = table.column(name)
    if not pa.types.is_integer(column.type):
        do = "Set data.raw_ids, which numbers its values, or number them first"
        raise DataError(f"{uri}: column {name!r} is {column.type}; whole numbers are needed. {do}")
    return _numbers(column, name, uri)


def _numbers(column: pa.ChunkedArray, name: str, uri: str) -> Ids:
    try:
        values: Ids = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:  # uint64 beyond int64
        raise DataError(f"{uri}: column {name!r} cannot be numbered: {error}. Number its values from 0 on") from None
    return values


def _of_raw(user: pa.ChunkedArray, item: pa.ChunkedArray, when: NDArray[Any] | None) -> Feedback:
    (users, who), (items, what) = numbered(user), numbered(item)
    return Feedback.of(users, items, when, {"user": who, "item": what})


def numbered(values: pa.ChunkedArray) -> tuple[Ids, pa.Array]:
    """Each value's place, from 0 on, among all that there are in their order: words by their bytes, numbers by size.

    Beside it all of them in that order.
    """
    every = pc.unique(values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values)
    names = every.take(pc.sort_indices(every))
    found: Ids = pc.index_in(values, value_set=names).cast(pa.int64()).to_numpy()
    return found, names


def is_text(uri: str) -> bool:
    """Whether a source is read as lines: a local file that is not called `.parquet`, or one anywhere called `.txt`."""
    name = uri.removesuffix(".gz")
    return name.endswith(".txt") if "://" in uri else Path(uri).is_file() and not uri.endswith(".parquet")


def from_text(path: str, *, raw: bool = False) -> Feedback:
    """Lines of `user item item ...`, whole numbers, oldest first; or of `user item`, one an interaction.

    The file lies anywhere that fsspec reaches, and may be compressed (`.gz`). `raw`: users and items are any words, and
    numbered here: see `numbered`.

    Raises:
        DataError: a file that is not there, or a line that is none of these; names the line.
    """
    users, items = list[Any](), list[Any]()
    for number, words in _lines(path):
        try:
            user, *those = words if raw else map(int, words)
        except ValueError:
            shown = next(word for word in words if not _is_whole(word))
            raise DataError(
                f"{path}: line {number} has a word that is no whole number: {shown[:60]!r}. Set data.raw_ids, which "
                "numbers words, or number users and items first"
            ) from None
        if not those:
            raise DataError(f"{path}: line {number} has a user and no item. Add the items, or drop the line")
        users += [user] * len(those)
        items += those
    if not users:
        raise DataError(f"{path}: it has no interactions")
    if raw:
        return _of_raw(pa.chunked_array([users]), pa.chunked_array([items]), None)
    return Feedback.of(np.array(users, np.int64), np.array(items, np.int64), None)


def _is_whole(word: str) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as file:
            for number, line in enumerate(file, start=1):
                if words := line.split():
                    yield number, words
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check data.source") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: it is no text") from None
    except (OSError, EOFError, ValueError, ImportError) as error:
        raise DataError(f"{path}: it cannot be read ({one_line(error)})") from None
