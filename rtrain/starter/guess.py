"""What each column is taken for, and why; the recipe says both, so that a wrong guess is seen."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from rtrain.data.nested import is_list, one_list
from rtrain.starter.table import Given

LABELS = (
    "label", "click", "clicked", "is_click", "target", "like", "liked", "is_liked", "purchase", "purchased",
    "bought", "converted", "conversion", "watched", "rating", "ratings", "stars", "score",
)  # fmt: skip
TIMES = ("time", "timestamp", "ts", "datetime", "date", "at", "created_at", "event_time", "unix_time", "unixtime")
USER = {"user", "users", "uid", "customer", "member", "visitor", "viewer", "buyer", "account"}
ITEM = {
    "item", "items", "iid", "product", "sku", "movie", "film", "book", "song", "track", "article", "ad", "video",
    "listing", "doc", "document",
}  # fmt: skip
CATEGORY = {
    "hour", "weekday", "day", "dow", "month", "category", "genre", "brand", "type", "kind", "position", "country",
    "city", "device", "code", "zip",
}  # fmt: skip
IN_TIME = {"history", "recent", "last", "sequence", "session", "previous"}
"""Words of a list's name that say that its order is one in time."""
VOCABULARY_WORDS = 5000
"""Words of a column that a recipe still holds."""
TABLE_ROWS = 10_000_000
"""Largest table that is made without asking."""
NAME = re.compile(r"[A-Za-z][\w -]*")
"""Names that a request and a table can have."""


@dataclass(frozen=True)
class Column:
    """A column and what it is taken for."""

    name: str
    """As the file has it."""
    kind: str
    """`Dense`, `Id`, `IdList` or `IdSequence`; empty: it is left out."""
    why: str
    """A comment."""
    options: tuple[tuple[str, str], ...] = ()
    """Arguments of the feature besides its name, as Python writes them."""
    words: tuple[str, ...] = ()
    """Its vocabulary."""
    entity: str = "context"
    """Whom it describes."""


def parts(name: str) -> list[str]:
    """The words of a column's name: `userId` and `user_id` are both user, id."""
    return re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def named(schema: pa.Schema, wanted: tuple[str, ...]) -> str:
    """The first column, in the order of the wanted names, that is called so; empty where none is."""
    by_name = {"_".join(parts(name)): name for name in reversed(schema.names)}
    return next((by_name[name] for name in wanted if name in by_name), "")


def time_column(schema: pa.Schema) -> str:
    """The column that orders the rows: by its name, else by its type; empty where none is."""
    orders = [
        f.name
        for f in schema
        if pa.types.is_timestamp(f.type) or pa.types.is_date(f.type) or _is_number(f.type) or pa.types.is_null(f.type)
    ]
    ordering = pa.schema([schema.field(name) for name in orders])
    typed = (f.name for f in ordering if pa.types.is_timestamp(f.type) or pa.types.is_date(f.type))
    return named(ordering, TIMES) or next(typed, "")


def columns(data: Given, taken: dict[str, str]) -> Iterator[Column]:
    """Every column in the file's order; `taken`: those that are no features, and why."""
    for name in data.schema.names:
        if name in taken:
            if taken[name]:
                yield Column(name, "", taken[name])
        elif not NAME.fullmatch(name):
            yield Column(name, "", "a feature's name begins with a letter and has letters, digits, _ - and spaces")
        elif "_".join(parts(name)) in LABELS:
            yield Column(name, "", "looks like another label: known only after the fact")
        else:
            yield _feature(name, data.column(name))


def _feature(name: str, column: pa.ChunkedArray) -> Column:
    kind = column.type
    if is_list(kind):
        flat = pc.list_flatten(one_list(column))
        if flat.null_count:
            return Column(name, "", f"{flat.null_count} nulls inside its lists: drop them first")
        in_time = bool(IN_TIME & set(parts(name)))
        return _looked_up(name, flat, "IdSequence" if in_time else "IdList")
    if column.null_count == len(column):
        return Column(name, "", "it is empty")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _looked_up(name, column, "Id")
    if not _is_number(kind):
        return Column(name, "", f"no feature takes {kind}: make numbers, words or lists of them of it first")
    words = parts(name)
    whole = pa.types.is_integer(kind)
    if whole and (words[-1] in ("id", "ids", "uid", "iid") or set(words) <= USER | ITEM | CATEGORY):
        return _looked_up(name, column, "Id")
    return _number(name, column)


def _number(name: str, column: pa.ChunkedArray) -> Column:
    values = column.cast(pa.float64())
    known = values.filter(pc.is_finite(values))
    if len(known) + values.null_count < len(values):
        return Column(name, "", "it has values that are not finite (inf, nan)")
    mean, std = float(pc.mean(known).as_py()), float(pc.stddev(known).as_py())
    if not std > 0:
        return Column(name, "", f"it is {known[0].as_py():g} in every row")
    options = [("mean", f"{mean:.6g}"), ("std", f"{std:.6g}")]
    why = f"a number, {pc.min(known).as_py():g} to {pc.max(known).as_py():g}"
    if values.null_count:
        options.append(("missing", f"{mean:.6g}"))
        why += f"; {values.null_count} rows are without it and get the mean"
    return Column(name, "Dense", why, tuple(options), entity=_entity(name))


def _looked_up(name: str, values: pa.ChunkedArray, kind: str) -> Column:
    """A column of ids or words; of lists, their values flat."""
    entity, what = _entity(name), "" if kind == "Id" else "lists of "
    length = (("max_length", "50"),) if kind == "IdSequence" else ()
    order = ", oldest first, of which the newest count" if kind == "IdSequence" else ""
    if pa.types.is_integer(values.type):
        if values.null_count:
            return Column(name, "", f"{values.null_count} rows are without it, and a whole number has no 'unknown'")
        smallest, largest = pc.min(values).as_py(), pc.max(values).as_py()
        if smallest is None:
            return Column(name, "", "it is empty")
        if smallest < 0 or largest >= TABLE_ROWS:
            return Column(
                name, "", f"its ids are {smallest} to {largest}, and a table has a row for each: count them from 0"
            )
        why = f"{what}whole numbers, {smallest} to {largest}{order}; raise rows for ids still to come"
        return Column(name, kind, why, (("rows", str(largest + 1)), *length), entity=entity)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return Column(name, "", f"no feature takes lists of {values.type}: make whole numbers or words of it first")
    words = tuple(sorted(w for w in pc.unique(values).to_pylist() if w is not None))
    if len(words) > VOCABULARY_WORDS:
        return Column(
            name, "", f"{len(words)} different words, more than a recipe holds: number them from 0 for an Id(rows=...)"
        )
    if not words or (kind == "Id" and len(words) > max(10, len(values) / 2)):
        return Column(name, "", "nearly every row has a word of its own, so there is nothing to learn from it")
    why = f"{what}words, {len(words)} different ones{order}; others that come later count as unknown"
    return Column(name, kind, why, length, words, entity)


def _is_number(kind: pa.DataType) -> bool:
    return bool((pa.types.is_integer(kind) and not pa.types.is_uint64(kind)) or pa.types.is_floating(kind))


def _entity(name: str) -> str:
    words = set(parts(name))
    return "user" if words & USER else "item" if words & ITEM else "context"
