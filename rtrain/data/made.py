"""The features that are made of columns of moments: hours, days of the week, and ages.

Shape legend: N rows.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.moments import Seconds, moments, moments_or_null
from rtrain.data.place import Place, first
from rtrain.moment import FIRST_SECOND, LAST_SECOND, Age, Moment
from rtrain.schema import Schema

HOUR, DAY = 3600, 86_400
THURSDAY = 3
"""1970-01-01's day of the week, counted from Monday."""


def moment_ids(table: pa.Table, feature: Moment, schema: Schema, at: Place) -> NDArray[np.int32]:
    """[N]: the hour or the day of each row; of a null the row after all of them.

    Raises:
        DataError: a null without `missing`, or a moment of no year that there is.
    """
    name = feature.column or schema.time
    what, fill = f"feature {feature.name!r}: its {name!r}", None if feature.missing else 'Moment(missing="own")'
    seconds, nulls = moments_or_null(table.column(name), what, at, fill=fill)
    local = seconds + _ahead_of_utc(seconds, feature.zone)
    parts = local // HOUR % 24 if feature.part == "hour" else (local // DAY + THURSDAY) % 7
    return np.where(nulls, feature.values, parts).astype(np.int32)


def ages(table: pa.Table, feature: Age, schema: Schema, at: Place) -> NDArray[np.float32]:
    """[N, 1]: what a model is given of each row's age.

    Raises:
        DataError: a null without `missing`, a moment of no year that there is, or one behind the row's own.
    """
    what, fill = f"feature {feature.name!r}: its {feature.column!r}", None
    if feature.missing is None:
        fill = "Age(missing=...) the seconds to use instead"
    own = moments(table.column(schema.time), schema.time, at)
    other, nulls = moments_or_null(table.column(feature.column), what, at, fill=fill)
    seconds = np.where(nulls, 0, own - other)
    if feature.future == "refuse" and (seconds < 0).any():
        row = first(seconds < 0)
        why = f', behind the row\'s own moment, {own[row]}: the future. Mend it, drop the row, or give future="zero"'
        raise at.refuse(f"{what} is {other[row]}", row, why)
    told = np.where(nulls, feature.missing or 0.0, np.maximum(seconds, 0).astype(np.float64))
    return feature.scaled(told).astype(np.float32)[:, None]


def with_parts(table: pa.Table, names: Sequence[str], schema: Schema, where: str) -> pa.Table:
    """The columns `names`, of which a `Moment`'s is its hours or days, null where the moment is.

    `table`: the columns that `sources_of` says.

    Raises:
        DataError: as `moment_ids`.
    """
    at, made = Place(where, np.arange(table.num_rows)), {f.name: f for f in schema.made if isinstance(f, Moment)}
    columns = {}
    for name in names:
        feature = made.get(name)
        if feature is None:
            columns[name] = table.column(name)
        else:
            ids = moment_ids(table, feature, schema, at)
            columns[name] = pa.chunked_array([pa.array(ids, mask=ids == feature.values)])
    return pa.table(columns)


def sources_of(names: Sequence[str], schema: Schema) -> list[str]:
    """The columns of the data that say what is in `names`, of which some are `Moment` features."""
    made = {f.name: f.column or schema.time for f in schema.made if isinstance(f, Moment)}
    return list(dict.fromkeys(made.get(name, name) for name in names))


def _ahead_of_utc(seconds: Seconds, zone: str) -> Seconds:
    """[N]: seconds that the zone's clocks are ahead.

    Not by Arrow, which knows no summer time beyond the last change that the zone's file lists: some files list none
    after 2007, but a rule. Clocks are asked once an hour that there is, and twice in no hour do they change.
    """
    if zone == "UTC":
        return np.zeros_like(seconds)
    clock = ZoneInfo(zone)

    def ahead(moments: Seconds) -> Seconds:
        # At either end of all years a zone's own time is of no year: there the clocks of the day within are read.
        within = np.clip(moments, FIRST_SECOND + 2 * DAY, LAST_SECOND - 2 * DAY).tolist()
        offsets = (datetime.fromtimestamp(moment, clock).utcoffset() for moment in within)
        return np.array([(offset or timedelta()).total_seconds() for offset in offsets], np.int64)

    hours, place = np.unique(seconds // HOUR, return_inverse=True)
    begin, end = ahead(hours * HOUR), ahead(hours * HOUR + HOUR - 1)
    found: Seconds = begin[place]
    changing = (begin != end)[place]
    found[changing] = ahead(seconds[changing])
    return found
