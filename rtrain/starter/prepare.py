"""From a user's file to one that a run reads: a label of 0 and 1, rows in the order of time, Parquet."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from rtrain.errors import DataError, did_you_mean
from rtrain.starter import guess
from rtrain.starter.table import Given, of_table

RULE = re.compile(r"\s*(.+?)\s*(>=|<=|==|>|<)\s*(-?\d+(?:\.\d+)?)\s*")
COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    ">=": pc.greater_equal, "<=": pc.less_equal, "==": pc.equal, ">": pc.greater, "<": pc.less,
}  # fmt: skip
"""The column that a file without times is given."""


@dataclass(frozen=True)
class Prepared:
    """Data that a run reads as it is, and how it came to be so."""

    data: Given
    label: str
    """Column of 0 and 1."""
    time: str
    """Column that orders the rows."""
    table: pa.Table | None
    """What has to be written; none: the user's own file serves."""
    done: tuple[str, ...]
    """What was changed, for the recipe's comment."""
    taken: dict[str, str]
    """Columns that are no features -> why, empty where it needs no words."""


def prepare(data: Given, asked: str) -> Prepared:
    """Find label and time, and make what is missing; `asked`: the label's column, or a rule such as `rating>=4`.

    Raises:
        DataError: no label to be found, one that is not 0 or 1, or a time that is missing in some rows.
    """
    column, rule = _label(data, asked)
    time = guess.time_column(data.schema.remove(data.schema.get_field_index(column)))
    done: list[str] = [] if data.is_parquet else [f"read from {data.uri!r}"]
    taken = {column: "", time: ""}
    changes: dict[str, pa.ChunkedArray | pa.Array] = {}
    label = column
    if rule:
        label = next(n for n in ("label", f"{column}_label", f"{column}_is_1") if n not in data.schema.names)
        words, compare, threshold = rule
        changes[label] = compare(data.column(column), threshold).cast(pa.int8())
        taken[column] = f"the label is made of it ({words})"
        taken[label] = ""
        done.append(f"{label!r} is 1 where {words}, else 0")
    _check_label(data.uri, label, changes.get(label, data.column(column)))
    sort = _unsorted(data, time) if time else False
    if sort:
        done.append(f"sorted by {time!r}")
    if time and pa.types.is_date32(data.schema.field(time).type):
        changes[time] = data.column(time).cast(pa.timestamp("s"))
        done.append(f"{time!r} is a timestamp")
    for field in data.schema:
        if pa.types.is_boolean(field.type) and field.name not in taken:
            changes[field.name] = data.column(field.name).cast(pa.int8())
            done.append(f"{field.name!r} is 0 or 1 instead of false or true")
    if not done:
        return Prepared(data, label, time, None, (), taken)
    table = data.read(data.schema.names)
    for name, values in changes.items():
        index = table.schema.get_field_index(name)
        table = table.append_column(name, values) if index < 0 else table.set_column(index, name, values)
    if sort:
        table = table.sort_by(time)
    return Prepared(of_table(data.uri, table, is_parquet=True), label, time, table, tuple(done), taken)


def _label(data: Given, asked: str) -> tuple[str, tuple[str, Callable[..., pa.ChunkedArray], float] | None]:
    """The column that the label is, or is made of by a rule."""
    names = data.schema.names
    if not asked:
        found = guess.named(data.schema, guess.LABELS)
        if not found:
            raise DataError(
                f"{data.uri}: no column is named like a label. Say which is 0 or 1 with --label COLUMN, or when it is "
                f"1 with --label 'COLUMN>=NUMBER'. The columns are {', '.join(names)}"
            )
        return found, None
    match = None if asked in names else RULE.fullmatch(asked)
    column = match[1] if match else asked
    if column not in names:
        near = did_you_mean(column, names)
        raise DataError(f"--label: {data.uri} has no column {column!r}{near or '. It has ' + ', '.join(names)}")
    if not match:
        return column, None
    kind = data.schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"--label: {column!r} is {kind}, and {asked!r} compares numbers")
    number = float(match[3])
    return column, (f"{column} {match[2]} {number:g}", COMPARE[match[2]], number)


def _check_label(uri: str, name: str, values: pa.ChunkedArray) -> None:
    if values.null_count:
        raise DataError(f"{uri}: {values.null_count} rows are without the label {name!r}. Fill it, or drop those rows")
    kind = values.type
    found = sorted(pc.unique(values).to_pylist()[:1000])
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"{uri}: the label {name!r} holds words ({', '.join(map(repr, found[:3]))}), but a label is 0 or 1. "
            "Turn it into 0 and 1, or name another column with --label COLUMN"
        )
    if not set(found) <= {0, 1}:
        middle = found[len(found) // 2]
        raise DataError(
            f"{uri}: {name!r} holds {found[0]:g} to {found[-1]:g}, but a label is 0 or 1. Say when it is 1, for "
            f"example --label '{name}>={middle:g}', or name another column with --label COLUMN"
        )
    if len(found) < 2:
        raise DataError(
            f"{uri}: the label {name!r} is {int(found[0])} in every row, so there is nothing to learn. Bring rows of "
            "the other kind, or name another column with --label COLUMN"
        )


def _unsorted(data: Given, time: str) -> bool:
    values = data.column(time)
    if values.null_count or (pa.types.is_floating(values.type) and pc.any(pc.is_nan(values)).as_py()):
        raise DataError(f"{data.uri}: the time column {time!r} is missing in some rows. Fill it, or drop those rows")
    return bool(pc.any(pc.greater(values[:-1], values[1:])).as_py())
