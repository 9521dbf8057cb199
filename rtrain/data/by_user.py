"""Whose each row of a table is: rows sorted by user, for splits that part what each user has.

While a split is made, a row takes some 50 bytes (measured: 26 by order, 44 by chance); no other column is read.

Shape legend: N rows, U users.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.hashed import hashes
from rtrain.data.parquet import ParquetRows
from rtrain.data.split import times_of
from rtrain.errors import ConfigError, DataError
from rtrain.moment import Moment
from rtrain.schema import Many, Schema


@dataclass(frozen=True)
class ByUser:
    """A table's rows, sorted by user; which user comes first says nothing."""

    order: NDArray[np.int64]
    """[N] numbers of the rows, each user's together: the oldest first, those of one moment as they are stored."""
    starts: NDArray[np.int64]
    """[U + 1] where each user's rows begin, and the end of all."""


def user_column(schema: Schema) -> str:
    """The column that says whose a row is: `schema.group`, else the one `Id` of the user's; empty where neither is."""
    of_users = [f.name for f in schema.ids if f.entity == "user" and not isinstance(f, Many | Moment)]
    return schema.group or (of_users[0] if len(of_users) == 1 else "")


def by_user(rows: ParquetRows, user: str, time: str, *, split: str) -> ByUser:
    """Rows by the user's column and within it by the column `time`; without one as they are stored.

    Users are told apart by 64 bits of their value, whatever its type. `split`: what a message calls the asker.

    Raises:
        ConfigError: no user's column is named.
        DataError: a row without a user or a time, a time of another kind, or nobody with the three rows that it takes
            for one to train, one to validate and one to test.
    """
    if not user:
        raise ConfigError(
            f"schema.group: it is empty, and no one Id feature is the user's (entity 'user'), but data.split={split} "
            "needs the column that says whose a row is. Name it, or give data.split=Random()"
        )
    whose = np.empty(rows.rows, np.uint64)
    when: NDArray[np.generic] | None = None
    for group in rows.row_groups:
        column = rows.read(group.first_row, group.stop, [user])
        if column[user].null_count:
            row = int(pc.index(pc.is_null(column[user]), True).as_py())
            raise DataError(
                f"{rows.name(group)}: {user!r} is missing at row {group.file_row + row}, so that data.split={split} "
                "does not know whose it is. Fill or drop it, or give data.split=Random()"
            )
        whose[group.first_row : group.stop] = hashes(column)
        if time:
            times = times_of(rows, time, group)
            when = np.empty(rows.rows, times.dtype) if when is None else when
            when[group.first_row : group.stop] = times
    order = np.argsort(whose, kind="stable") if when is None else np.lexsort((when, whose))
    del when
    rising = whose[order]
    starts = np.flatnonzero(np.concatenate([[True] * min(1, rows.rows), rising[1:] != rising[:-1], [True]]))
    if not (np.diff(starts) >= 3).any():
        raise DataError(
            f"{rows.uri}: none of its {len(starts) - 1} users (column {user!r}) has three rows, so data.split={split} "
            "leaves nothing to validate and to test. Bring more data, or give data.split=Random()"
        )
    return ByUser(order, starts)
