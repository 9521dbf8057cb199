"""The SQL: a log's rows counted once into a tally, sessions made of it, and sums over sessions for each rate.

    log -> tally      a row for each group, session, query, clicked item and event: how often, and when last
    tally -> sessions a row for each group and session
    sessions -> sums  a row for each group

All three are grouped aggregates, which DuckDB spills to disk beyond its memory; of the log nothing else is kept.
"""

from rtrain.data.duck import quoted
from rtrain.evaluation.online.log import OPTIONAL, Columns
from rtrain.evaluation.online.rates import RATES

SESSIONS = {
    "sessions": "1",
    "events": "sum(n)",
    "impressions": "sum(n) FILTER (kind = 'impression')",
    "clicks": "sum(n) FILTER (kind = 'click')",
    "added": "max(1) FILTER (kind = 'add_to_cart')",
    "bought": "max(1) FILTER (kind = 'purchase')",
    # Of events at one time, what was done counts as after what was shown.
    "left_unmoved": "CASE WHEN max(last_at) FILTER (kind NOT IN ('impression', 'search')) = max(last_at) "
    "THEN 0 ELSE 1 END",
    "empty_searches": "sum(empty)",
    "counted_searches": "sum(counted)",
    "queries": "sum(searched)",
    "clicked_queries": "sum(clicked)",
    "clicked_items": "sum(items)",
}
"""Columns of a session, whole numbers."""


def groups(columns: Columns) -> list[str]:
    """The tables' own names of the columns in `columns.by`."""
    return [f"by_{index}" for index in range(len(columns.by))]


def _keys(columns: Columns) -> str:
    """What stands before a session in SQL's lists: the groups, and the unit where that is another."""
    return "".join(f"{name}, " for name in [*groups(columns), *["unit"] * bool(columns.unit)])


def tally(source: str, columns: Columns, types: dict[str, str], time: str) -> str:
    """Makes the table `tally`; takes `$files`, and the table `kinds` of event and kind.

    `types`: SQL types of the columns that are there; `time`: the expression of an event's time.
    """

    def value(name: str) -> str:
        """A column; text of no letters is none, as in CSV."""
        if name not in types:
            return "CAST(NULL AS VARCHAR)"
        return f"nullif({quoted(name)}, '')" if types[name] == "VARCHAR" else quoted(name)

    query, item, results = (value(getattr(columns, role) or default) for role, default in OPTIONAL.items())
    named = [*zip(columns.by, groups(columns), strict=True), *[(columns.unit, "unit")] * bool(columns.unit)]
    keys = "".join(f"{value(name)} AS {own}, " for name, own in named)
    return f"""
        CREATE TEMP TABLE tally AS
        SELECT {_keys(columns)} session, query, CASE WHEN kind = 'click' THEN item END AS item, event, kind,
            count(*) AS n, max(moment) AS last_at, count(*) - count(moment) AS timeless,
            count(results) FILTER (kind = 'search') AS counted,
            count(*) FILTER (kind = 'search' AND results = 0) AS empty,
            count(*) FILTER (kind = 'search' AND NOT (results >= 0 AND results < 'inf')) AS wrong
        FROM (
            SELECT {keys} {value(columns.session)} AS session, {query} AS query, {item} AS item,
                CAST({value(columns.event)} AS VARCHAR) AS event, {time} AS moment, CAST({results} AS DOUBLE) AS results
            FROM {source}
        ) LEFT JOIN kinds USING (event)
        GROUP BY ALL"""


def found(columns: Columns) -> str:
    """The fields of `measure.Found`, of the table `tally`."""
    unitless = "sum(n) FILTER (unit IS NULL)" if columns.unit else "0"
    return f"""
        SELECT sum(n), sum(n) FILTER (session IS NULL), sum(timeless), sum(n) FILTER (event IS NULL), {unitless},
            sum(wrong), count(query), count(item), sum(counted), sum(n) FILTER (kind = 'search')
        FROM tally"""


def sessions(columns: Columns) -> str:
    """Makes the table `sessions` of the table `tally`."""
    keys = _keys(columns)
    made = ", ".join(f"CAST(coalesce({made}, 0) AS BIGINT) AS {name}" for name, made in SESSIONS.items())
    return f"""
        CREATE TEMP TABLE sessions AS
        SELECT {keys} session, {made}
        FROM (
            SELECT {keys} session, kind, n, last_at, counted, empty FROM tally
            UNION ALL BY NAME
            SELECT {keys} session, 1 AS searched, clicked FROM (
                SELECT {keys} session, query, max(CAST(kind = 'click' AS INT)) AS clicked
                FROM tally WHERE query IS NOT NULL GROUP BY ALL HAVING bool_or(kind = 'search'))
            UNION ALL BY NAME
            SELECT {keys} session, 1 AS items FROM (
                SELECT DISTINCT {keys} session, item FROM tally WHERE item IS NOT NULL)
        )
        GROUP BY {keys} session"""


def sums(columns: Columns) -> str:
    """Of each group its values as text, units, sessions and events, then for each rate the sums y, x, yy, xy, xx."""
    own = groups(columns)
    summed = ", ".join(f"sum({name}) AS {name}" for name in SESSIONS)
    units = f"(SELECT {_keys(columns)} {summed} FROM sessions GROUP BY {_keys(columns).removesuffix(', ')})"
    by = "".join(f"CAST({name} AS VARCHAR), " for name in own)
    parts = [
        f"sum({left} * {right})"
        for rate in RATES
        for y, x in [(f"{rate.numerator}::HUGEINT", f"{rate.denominator}::HUGEINT")]
        for left, right in ((y, "1"), (x, "1"), (y, y), (x, y), (x, x))
    ]
    grouped = f"GROUP BY {', '.join(own)}" if own else ""
    order = f"ORDER BY {', '.join(f'{name} NULLS LAST' for name in own)}" if own else ""
    return (
        f"SELECT {by} count(*), sum(sessions), sum(events), {', '.join(parts)} "
        f"FROM {units if columns.unit else 'sessions'} {grouped} {order}"
    )


SPREAD = "SELECT count(*), count(*) FILTER (n > 1) FROM (SELECT session, count(*) AS n FROM sessions GROUP BY session)"
"""Sessions, and how many of them have events in several groups or of several units."""


def time_expression(name: str, kind: str, sample: object) -> str | None:
    """SQL of an event's time: a number or a point in time; none where the column can be neither.

    `kind`: the column's SQL type; `sample`: a value, of text alone looked at.
    """
    if kind == "VARCHAR":
        return f"CAST(nullif({quoted(name)}, '') AS {'DECIMAL(38, 9)' if is_number(sample) else 'TIMESTAMPTZ'})"
    if kind in ("FLOAT", "DOUBLE"):
        return f"CASE WHEN NOT isnan({quoted(name)}) THEN {quoted(name)} END"
    if kind == '"NULL"':  # Parquet's type of a column without any value
        return "CAST(NULL AS BIGINT)"
    orders = ("TIMESTAMP", "DATE", "DECIMAL", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
    return quoted(name) if kind.removeprefix("U").startswith(orders) else None


def is_number(sample: object) -> bool:
    """Whether a text is one."""
    try:
        float(str(sample))
    except ValueError:
        return False
    return True
