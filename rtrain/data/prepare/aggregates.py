"""What is known of a row's key from strictly older rows, each kind as the SQL of DuckDB's windows.

A row of the same moment is not older, so no order among rows of one moment matters. The SQL runs over `moments`: one
row for each key and moment `_t` (microseconds), with `n` rows and, of each column that a mean is of, `n_<column>`
values and their sum `s_<column>`. A key that is missing has no older rows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from rtrain.data.duck import quoted
from rtrain.data.prepare.windows import SECOND, seconds
from rtrain.errors import ConfigError

OLDER = "PARTITION BY key ORDER BY _t"


def frame(within: str, where: str) -> str:
    """SQL of the window of strictly older moments, at most `within` before; empty: of all."""
    reach = f"{seconds(within, where) * SECOND} PRECEDING" if within else "UNBOUNDED PRECEDING"
    return f"({OLDER} RANGE BETWEEN {reach} AND 1 PRECEDING)"


@dataclass(frozen=True, kw_only=True)
class Aggregate(ABC):
    """Columns of each row that older rows of its key make."""

    by: str
    """Column whose value is the key."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Of each column that it adds, the SQL over `moments`, with what `marks` adds to them."""

    @property
    @abstractmethod
    def nothing(self) -> dict[str, str]:
        """Of each column that it adds, the SQL of its value where there is no older row."""

    @property
    def of_columns(self) -> tuple[str, ...]:
        """Columns of numbers that it needs beside the key."""
        return ()

    @property
    def marks(self) -> tuple[dict[str, str], dict[str, str]]:
        """Columns that `columns` needs beside those of `moments`, and first those that these need."""
        return {}, {}


@dataclass(frozen=True, kw_only=True)
class Count(Aggregate):
    """How many older rows the key has: int64."""

    within: str = ""
    """At most how long ago, such as 7d; empty: ever."""

    def __post_init__(self) -> None:
        frame(self.within, "count")

    @property
    def columns(self) -> dict[str, str]:
        """`<by>_count_<within>`."""
        return {
            _named(self.by, "count", self.within): f"CAST(coalesce(sum(n) OVER {frame(self.within, '')}, 0) AS BIGINT)"
        }

    @property
    def nothing(self) -> dict[str, str]:
        """0."""
        return dict.fromkeys(self.columns, "CAST(0 AS BIGINT)")


@dataclass(frozen=True, kw_only=True)
class Mean(Aggregate):
    """The mean of a column over the key's older rows, in which it is not missing: double.

    It is (sum + prior_rows prior) / (n + prior_rows), and the prior where there are none.
    """

    of: str
    """Column of numbers."""
    within: str = ""
    """At most how long ago, such as 7d; empty: ever."""
    prior: float | None = None
    """What it is where nothing is known; none: missing."""
    prior_rows: float = 0.0
    """Rows that the prior counts as."""

    def __post_init__(self) -> None:
        frame(self.within, "mean")
        if self.prior_rows and self.prior is None:
            raise ConfigError(f"mean: prior_rows={self.prior_rows:g} are rows of a prior. Give prior too")
        if not 0 <= self.prior_rows < float("inf") or not abs(self.prior or 0) < float("inf"):
            raise ConfigError("mean: prior must be a number, and prior_rows a number of at least 0")

    @property
    def of_columns(self) -> tuple[str, ...]:
        """What it is the mean of."""
        return (self.of,)

    @property
    def columns(self) -> dict[str, str]:
        """`<by>_<of>_mean_<within>`."""
        over = frame(self.within, "")
        total, n = (f"coalesce(CAST(sum({quoted(f'{x}_{self.of}')}) OVER {over} AS DOUBLE), 0)" for x in "sn")
        mean = f"({total} + {self.prior_rows * (self.prior or 0)!r}) / ({n} + {self.prior_rows!r})"
        (name,) = self.nothing
        return {name: f"CAST(CASE WHEN {n} = 0 THEN {self.nothing[name]} ELSE {mean} END AS DOUBLE)"}

    @property
    def nothing(self) -> dict[str, str]:
        """The prior."""
        prior = "NULL" if self.prior is None else repr(float(self.prior))
        return {_named(self.by, self.of, "mean", self.within): f"CAST({prior} AS DOUBLE)"}


@dataclass(frozen=True, kw_only=True)
class Trend(Aggregate):
    """How much more often the key came of late: its rows a second within the short time, over those of the long.

    A double: 1 is steady; missing where it did not come in the long time.
    """

    within: str
    """The short time, such as 1d."""
    over: str
    """The long time, such as 7d."""

    def __post_init__(self) -> None:
        if not seconds(self.within, "trend: within") < seconds(self.over, "trend: over"):
            raise ConfigError(f"trend: within must be shorter than over, got {self.within} and {self.over}")

    @property
    def columns(self) -> dict[str, str]:
        """`<by>_trend_<within>_<over>`."""
        short, long = (f"coalesce(CAST(sum(n) OVER {frame(x, '')} AS DOUBLE), 0)" for x in (self.within, self.over))
        times = seconds(self.over, "") / seconds(self.within, "")
        (name,) = self.nothing
        return {name: f"CASE WHEN {long} > 0 THEN {short} * {times!r} / {long} END"}

    @property
    def nothing(self) -> dict[str, str]:
        """Missing."""
        return {_named(self.by, "trend", self.within, self.over): "CAST(NULL AS DOUBLE)"}


@dataclass(frozen=True, kw_only=True)
class Recency(Aggregate):
    """Seconds since the key's last older row: double; missing where there is none."""

    @property
    def columns(self) -> dict[str, str]:
        """`<by>_recency`."""
        return {_named(self.by, "recency"): f"CAST(_t - lag(_t) OVER ({OLDER}) AS DOUBLE) / {SECOND}"}

    @property
    def nothing(self) -> dict[str, str]:
        """Missing."""
        return {_named(self.by, "recency"): "CAST(NULL AS DOUBLE)"}


@dataclass(frozen=True, kw_only=True)
class Session(Aggregate):
    """The key's visit so far, which ends where nothing comes for longer than `gap`.

    Two columns: its older rows, int64; seconds since its first row, double, 0 where the row begins it.
    """

    gap: str = "30m"
    """The longest time between two rows of one visit."""

    def __post_init__(self) -> None:
        seconds(self.gap, "session: gap")

    @property
    def marks(self) -> tuple[dict[str, str], dict[str, str]]:
        """When each moment's visit began."""
        starts, began = (quoted(f"_{x}_{self.gap}") for x in ("starts", "began"))
        before = f"lag(_t) OVER ({OLDER})"
        first = f"CASE WHEN {before} IS NULL OR _t - {before} > {seconds(self.gap, '') * SECOND} THEN _t END"
        return {starts: first}, {began: f"max({starts}) OVER ({OLDER} ROWS UNBOUNDED PRECEDING)"}

    @property
    def columns(self) -> dict[str, str]:
        """`<by>_session_rows_<gap>` and `<by>_session_seconds_<gap>`."""
        began = quoted(f"_began_{self.gap}")
        over = f"(PARTITION BY key, {began} ORDER BY _t RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        rows, since = self.nothing
        return {
            rows: f"CAST(coalesce(sum(n) OVER {over}, 0) AS BIGINT)",
            since: f"CAST(_t - {began} AS DOUBLE) / {SECOND}",
        }

    @property
    def nothing(self) -> dict[str, str]:
        """0 and 0."""
        rows, since = (_named(self.by, "session", x, self.gap) for x in ("rows", "seconds"))
        return {rows: "CAST(0 AS BIGINT)", since: "CAST(0 AS DOUBLE)"}


KINDS: dict[str, type[Aggregate]] = {
    "count": Count,
    "mean": Mean,
    "trend": Trend,
    "recency": Recency,
    "session": Session,
}
"""What each is called on the command line."""


def _named(*parts: str) -> str:
    return "_".join(filter(None, parts))


def select(aggregates: tuple[Aggregate, ...], rows: str) -> str:
    """SQL of `_pos` and each column of aggregates of one key, of `rows`: `key`, `_t`, `_pos` and the columns needed.

    A moment's sums come first, in the order of its rows, so that sums of floats are the same in every run.
    """
    needed = list(dict.fromkeys(name for one in aggregates for name in one.of_columns))
    sums = "".join(
        f", count({quoted(x)}) AS {quoted(f'n_{x}')}, sum({quoted(x)} ORDER BY _pos) AS {quoted(f's_{x}')}"
        for x in needed
    )
    first, second = ({k: v for one in aggregates for k, v in one.marks[level].items()} for level in (0, 1))
    made = {k: v for one in aggregates for k, v in one.columns.items()}

    def listed(columns: dict[str, str], quote: bool = False) -> str:
        return "".join(f", {sql} AS {quoted(name) if quote else name}" for name, sql in columns.items())

    names = "".join(f", known.{quoted(name)}" for name in made)
    return f"""
        WITH rows AS ({rows}),
        moments AS (SELECT key, _t, count(*) AS n{sums} FROM rows GROUP BY key, _t),
        first AS (SELECT *{listed(first)} FROM moments),
        second AS (SELECT *{listed(second)} FROM first),
        known AS (SELECT key, _t{listed(made, quote=True)} FROM second)
        SELECT rows._pos{names} FROM rows JOIN known ON rows.key = known.key AND rows._t = known._t
    """
