"""Features made of a column of moments: the hour or the day of one, and how long before its row's own moment it lies.

Shape legend: N rows.
"""

import math
from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np
from numpy.typing import NDArray

from rtrain.encodings import LARGEST
from rtrain.errors import ConfigError, did_you_mean

Entity = Literal["user", "item", "context"]

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Of the years 1 to 9999: what lies beyond counts no seconds since 1970, but parts of them."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The hour or the day of the week of a moment, looked up in a table as an `Id` is.

    The column holds seconds since 1970, whole or not, timestamps or dates; a timestamp without a zone is one of UTC. A
    request has the column, in whole seconds; which hour or day that is, is found by the same code.
    """

    name: str
    """Of the feature; no column of the data has to be called so."""
    entity: Entity = "context"
    """Whom the feature describes."""
    column: str = ""
    """Column in the data and key in a request; empty: the row's own moment, `schema.time`."""
    part: Literal["hour", "weekday"]
    """hour: 0 to 23; weekday: 0, a Monday, to 6, a Sunday."""
    zone: str = "UTC"
    """Where clocks are read: a name of the IANA's time zones, as Europe/Berlin, of which summer time is a part."""
    missing: Literal["own"] | None = None
    """What stands for a null; own: a row of the table of its own, the last; none refuses nulls."""
    table: str = ""
    """Table to look up in; features that name the same table share it. Empty: its own name."""

    def __post_init__(self) -> None:
        if self.zone == "UTC":  # which takes no list of zones, that a small image may be without
            return
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            known = sorted(available_timezones())
            near = did_you_mean(self.zone, known) or ". Give a name as Europe/Berlin"
            near = near if known else ": this machine has no list of zones. Do `pip install tzdata`"
            raise ConfigError(f"feature {self.name!r}: zone {self.zone!r} is no time zone known here{near}") from None

    @property
    def values(self) -> int:
        """Hours of a day, or days of a week."""
        return 24 if self.part == "hour" else 7

    @property
    def table_name(self) -> str:
        """The table that the feature reads."""
        return self.table or self.name

    @property
    def table_rows(self) -> int:
        """Rows of the table, that of a null included."""
        return self.values + (self.missing is not None)


@dataclass(frozen=True, kw_only=True)
class Age:
    """How long before its row's own moment, `schema.time`, another lies, such as an item's release: a number.

    A model has it as `(log(1 + seconds) - mean) / std`. Moments are whole seconds here, held by what `Moment` tells of;
    a request has both columns.
    """

    name: str
    """Of the feature; no column of the data has to be called so."""
    entity: Entity = "context"
    """Whom the feature describes."""
    column: str
    """Column of the other moment in the data, and key in a request."""
    mean: float = 0.0
    """Subtracted from the logarithm."""
    std: float = 1.0
    """Divides the logarithm less the mean; must be positive."""
    missing: float | None = None
    """Seconds that stand for a null, at least 0; none refuses nulls."""
    future: Literal["refuse", "zero"] = "refuse"
    """Of a moment behind the row's own, which nobody knew then. refuse: its row is named; zero: it counts as age 0."""

    def __post_init__(self) -> None:
        if not self.column:
            raise ConfigError(f"feature {self.name!r}: its column is empty. Name that of the other moment")
        if not self.std > 0:
            raise ConfigError(f"feature {self.name!r}: std must be positive, got {self.std}")
        if self.missing is not None and not 0 <= self.missing < math.inf:
            raise ConfigError(f"feature {self.name!r}: missing must be seconds of at least 0, got {self.missing}")
        ends = self.scaled(np.array([0.0, LAST_SECOND - FIRST_SECOND, self.missing or 0.0]))
        if not (np.abs(ends) <= LARGEST).all():
            raise ConfigError(
                f"feature {self.name!r}: float32 cannot hold what mean={self.mean} and std={self.std} make of an age. "
                "Give those of log(1 + seconds)"
            )

    @property
    def width(self) -> int:
        """Columns of the model's input that it becomes."""
        return 1

    @property
    def kept(self) -> tuple[int, ...]:
        """As `Dense.kept`."""
        return (1,)

    def scaled(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Ages [N] in seconds, at least 0 -> what a model is given of each."""
        with np.errstate(over="ignore"):  # what overflows is refused at the start
            found: NDArray[np.float64] = (np.log1p(seconds) - self.mean) / self.std
        return found
