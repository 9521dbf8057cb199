"""Who had which of two versions, told by who asked and when: no event needs to name it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from rtrain.data.duck import literal, quoted
from rtrain.errors import ConfigError, DataError
from rtrain.evaluation.online.log import Columns

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

COLUMN = "assigned"
"""What groups are told by."""
PLACES = 100_000
"""Names whose places are made at once."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A time in which a version had a share of those who asked."""

    start: float
    stop: float
    """Seconds since 1970; inf: it goes on."""
    share: float


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """A version that was tried beside another one."""

    new: str
    old: str
    windows: tuple[Window, ...]
    """One behind the other; what happened at other times is left out."""
    place: Callable[[str], float]
    """Of who asks in [0, 1): below a window's share it is the new version that answers."""


def check_assigned(columns: Columns) -> None:
    """See that who asked is told, and nothing else makes groups.

    Raises:
        ConfigError: it is not.
    """
    if columns.by:
        raise ConfigError("--assigned: the two versions are the groups. Leave out --by")
    if not columns.unit:
        raise ConfigError("--assigned: which column says who asked, as x-rtrain-key or user did? Give it as --unit")


def assigned_source(
    connection: "Connection", uri: str, source: str, given: dict[str, list[str]], columns: Columns, time: str,
    kind: str, assigned: Assigned,
) -> str:  # fmt: skip
    """SQL of the events of the windows, with `COLUMN` beside theirs; makes the tables that it needs.

    `time`: an event's, of the SQL type `kind`; numbers are seconds since 1970.

    Raises:
        DataError: no event is in any window.
    """
    unit = f"CAST({quoted(columns.unit)} AS VARCHAR)"
    connection.execute("CREATE TEMP TABLE places (name VARCHAR PRIMARY KEY, place DOUBLE)")
    names = connection.cursor().execute(f"SELECT DISTINCT {unit} FROM {source} WHERE {unit} IS NOT NULL", given)
    while some := names.fetchmany(PLACES):
        placed = pa.table({"name": [name for (name,) in some], "place": [assigned.place(name) for (name,) in some]})
        connection.register("placed", placed)
        connection.execute("INSERT INTO places SELECT * FROM placed")
        connection.unregister("placed")
    connection.execute("CREATE TEMP TABLE windows (start DOUBLE, stop DOUBLE, share DOUBLE)")
    connection.executemany(
        "INSERT INTO windows VALUES (?, ?, ?)", [[of.start, of.stop, of.share] for of in assigned.windows]
    )
    moment = f"CAST({time} AS DOUBLE)" if _is_number(kind) else f"epoch(CAST({time} AS TIMESTAMPTZ))"
    within = f"""(
        SELECT events.*, CASE WHEN place < share THEN {literal(assigned.new)} ELSE {literal(assigned.old)} END
            AS {quoted(COLUMN)}
        FROM (SELECT *, {moment} AS "its moment" FROM {source}) AS events
        JOIN windows ON "its moment" >= start AND "its moment" < stop
        LEFT JOIN places ON {unit} = name)"""
    if not connection.execute(f"SELECT 1 FROM {within} LIMIT 1", given).fetchone():
        first, last = assigned.windows[0].start, assigned.windows[-1].stop
        until = "on" if math.isinf(last) else f"to {last:.0f}"
        raise DataError(
            f"{uri}: no event is of the time in which version {assigned.new} was tried, from {first:.0f} {until}, by "
            f"{columns.time!r} (--time): seconds since 1970, or times"
        )
    return within


def _is_number(kind: str) -> bool:
    return not kind.startswith(("TIMESTAMP", "DATE"))
