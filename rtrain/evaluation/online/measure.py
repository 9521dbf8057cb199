"""An event log measured by DuckDB, which reads it as a stream and spills to disk beyond the memory it is given."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rtrain.data.duck import opened, quoted
from rtrain.data.files import Files, find_files
from rtrain.errors import ConfigError, DataError, did_you_mean
from rtrain.evaluation.online import tally
from rtrain.evaluation.online.assigned import COLUMN, Assigned, assigned_source, check_assigned
from rtrain.evaluation.online.experiment import hold
from rtrain.evaluation.online.intervals import Moments
from rtrain.evaluation.online.log import (
    KINDS,
    OPTIONAL,
    Columns,
    Events,
    check_columns,
    option,
)
from rtrain.evaluation.online.rates import RATES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

NAMED = 5
"""Events that an error names."""


@dataclass(frozen=True)
class Found:
    """What the tally says of the whole log."""

    events: int
    sessionless: int
    timeless: int
    eventless: int
    unitless: int
    wrong_results: int
    query: int
    item: int
    results: int
    """Rows of the tally with a query; with a clicked item; searches with a number of results."""
    searches: int


def measure_online(
    uri: str,
    columns: Columns | None = None,
    events: Events | None = None,
    *,
    memory_gb: float = 1.0,
    against: str = "",
    assigned: Assigned | None = None,
) -> dict[str, Any]:
    """The log's `events` and `sessions`, its `groups` with each rate of theirs, what was `left_out` and why, `notes`.

    `against`: of one column of `by` the value of the group that the others are held against: each of these has
    `differences`, of each rate the `value`, the 95 % interval's ends, the `share` of the other's rate that it is, and
    whether it `excludes_0`.

    `assigned`: an experiment that tells the group of each who asks; its two versions are the groups, held against each
    other, of the events of its time. `columns.unit` is who asked.

    The log is a file of Parquet, CSV or JSON lines, or a folder of them, anywhere that fsspec reaches. A rate is a
    dict of `value`, the 95 % interval's `low` and `high`, and the `numerator` and `denominator` that it is made of;
    `docs/metrics.md` has the formulas. DuckDB takes at most `memory_gb`, and a temporary folder beyond.

    Raises:
        ConfigError: DuckDB is not installed, or names that cannot be.
        DataError: a log that is not there, cannot be read, or lacks a column; rows without session, event or time;
            an event that no name matches.
    """
    columns, events = columns or Columns(), events or Events()
    if assigned:
        check_assigned(columns)
        against = against or assigned.old
    elif against and len(columns.by) != 1:
        raise ConfigError(f"--against: {against!r} is a value of one column; give that one, and no other, as --by")
    if not memory_gb > 0:
        raise ConfigError(f"--memory-gb: must be positive, got {memory_gb:g}")
    files = find_files(uri, table="event log", row="event")
    with opened(files.uri, files.filesystem, memory_gb, asker="metrics online", extra="online") as connection:
        columns, found = _count(connection, files, columns, events, assigned)
        connection.execute(tally.sessions(columns))
        kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM tally").fetchall()}
        left_out = _left_out(columns, events, found, kinds)
        rows = connection.execute(tally.sums(columns)).fetchall()
        sessions, spread = _one(connection, tally.SPREAD)
    groups = [_group(row, columns, left_out) for row in rows]
    if against:
        hold(groups, columns.by[0], against, files.uri)
    notes = []
    if spread:
        parts = " or ".join(["groups"] * bool(columns.by) + ["units"] * bool(columns.unit))
        notes.append(f"{spread} of {sessions} sessions have events in several {parts}, and count in each by those")
    if "zero_result_rate" not in left_out and found.results < found.searches:
        without = found.searches - found.results
        notes.append(f"{without} of {found.searches} searches do not say how many results, and do not count")
    return {
        "log": uri,
        "events": found.events,
        "sessions": sessions,
        "groups": groups,
        "left_out": left_out,
        "notes": notes,
    }


def _count(
    connection: "Connection", files: Files, columns: Columns, events: Events, assigned: Assigned | None
) -> tuple[Columns, Found]:
    """Read the log into the table `tally`, and refuse what cannot be measured; with what makes groups."""
    types = _types(connection, files, columns)
    source, given = files.source(list(types)), {"files": list(files.paths)}
    sample = None
    if types[columns.time] == "VARCHAR":
        name = quoted(columns.time)
        some = connection.execute(f"SELECT {name} FROM {source} WHERE nullif({name}, '') IS NOT NULL LIMIT 1", given)
        sample = (some.fetchone() or (None,))[0]
    time = tally.time_expression(columns.time, types[columns.time], sample)
    if time is None:
        raise DataError(
            f"{files.uri}: column {columns.time!r} (--time) is {types[columns.time]}, and neither numbers nor times"
        )
    if assigned:
        kind = types[columns.time]
        kind = "TIMESTAMPTZ" if kind == "VARCHAR" and not tally.is_number(sample) else kind
        source = assigned_source(connection, files.uri, source, given, columns, time, kind, assigned)
        columns, types = replace(columns, by=(COLUMN,)), types | {COLUMN: "VARCHAR"}
    connection.execute("CREATE TEMP TABLE kinds (event VARCHAR, kind VARCHAR)")
    if events.kinds:
        connection.executemany("INSERT INTO kinds VALUES (?, ?)", [list(pair) for pair in events.kinds.items()])
    connection.execute(tally.tally(source, columns, types, time), given)
    found = Found(*(int(value or 0) for value in _one(connection, tally.found(columns))))
    _check(connection, files.uri, columns, events, found)
    return columns, found


def _types(connection: "Connection", files: Files, columns: Columns) -> dict[str, str]:
    """The SQL types of the columns that are read."""

    def described(*, whole: bool) -> dict[str, str]:
        given = {"files": list(files.paths)}
        rows = connection.execute(f"DESCRIBE SELECT * FROM {files.source(whole=whole)}", given).fetchall()
        return {row[0]: row[1] for row in rows}

    named = [columns.session, columns.event, columns.time, *columns.by, *[columns.unit] * bool(columns.unit)]
    named += [name for role in OPTIONAL if (name := getattr(columns, role))]
    known = described(whole=False)
    if files.kind == "json" and set(named) - known.keys():
        known = described(whole=True)  # a key may be rare
    if files.kind == "json" and list(known) == ["json"]:
        return dict.fromkeys(named, "VARCHAR")  # no line, or lines that are no objects: reading them says which
    check_columns(files.uri, columns, list(known))
    wanted = [*named, *(default for role, default in OPTIONAL.items() if not getattr(columns, role))]
    if files.kind == "json":
        return dict.fromkeys(wanted, "VARCHAR")
    return {name: known[name] for name in wanted if name in known}


def _check(connection: "Connection", uri: str, columns: Columns, events: Events, found: Found) -> None:
    if not found.events:
        raise DataError(f"{uri}: there is no event in it")
    without = {
        "session": found.sessionless,
        "event": found.eventless,
        "time": found.timeless,
        "unit": found.unitless,
    }
    for role, count in without.items():
        if count:
            raise DataError(
                f"{uri}: {count} of {found.events} events have no {role} (column {getattr(columns, role)!r}). "
                "Drop or mend them first"
            )
    unknown = connection.execute(
        "SELECT event, sum(n) FROM tally WHERE kind IS NULL GROUP BY event ORDER BY sum(n) DESC, event"
    ).fetchall()
    if unknown:
        names = [str(name) for name, _ in unknown]
        shown = ", ".join(map(repr, names[:NAMED])) + f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        near = did_you_mean(names[0], events.kinds) or "."
        raise DataError(
            f"{uri}: {sum(int(n) for _, n in unknown)} of {found.events} events are called {shown}, which no option "
            f"names{near} Give each to one of {', '.join(map(option, KINDS))} (the last: of no kind)"
        )
    if found.wrong_results:
        raise DataError(
            f"{uri}: {found.wrong_results} searches have results (column {columns.results or OPTIONAL['results']!r}) "
            "that are no number of at least 0"
        )


def _left_out(columns: Columns, events: Events, found: Found, kinds: set[str]) -> dict[str, str]:
    """Rates that the log does not speak of, and why."""
    left_out = {}
    for rate in RATES:
        absent = [group for group in rate.needs if not kinds & set(group)]
        if absent:
            names = [" or ".join(name for kind in group for name in getattr(events, kind)) for group in absent]
            asks = ", ".join(option(kind) for group in absent for kind in group)
            left_out[rate.name] = f"there is no event {', and no event '.join(names)} ({asks})"
        elif rate.column and not getattr(found, rate.column):
            name = getattr(columns, rate.column) or OPTIONAL[rate.column]
            left_out[rate.name] = f"no such event has a value in a column {name!r} ({option(rate.column)})"
    return left_out


def _group(row: tuple[Any, ...], columns: Columns, left_out: dict[str, str]) -> dict[str, Any]:
    """A row of `tally.sums`, as it is told."""
    units, sessions, events, *flat = (int(value) for value in row[len(columns.by) :])
    told: dict[str, Any] = {"by": dict(zip(columns.by, row, strict=False)), "sessions": sessions, "events": events}
    if columns.unit:
        told["units"] = units
    for index, rate in enumerate(RATES):
        if rate.name not in left_out:
            y, x, yy, xy, xx = flat[5 * index : 5 * index + 5]
            moments = Moments(units, y, x, yy, xy, xx)
            low, high = rate.interval(moments, of_sessions=not columns.unit) or (None, None)
            told[rate.name] = {"value": moments.value, "low": low, "high": high, "numerator": y, "denominator": x}
    return told


def _one(connection: "Connection", query: str) -> tuple[Any, ...]:
    return connection.execute(query).fetchall()[0]
