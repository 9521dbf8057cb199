"""Train, validation and test rows, parted by time so that nothing of the future leaks into training."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.feedback import Feedback
from rtrain.data.footer import RowGroup
from rtrain.data.parquet import ParquetRows
from rtrain.data.parted import Parted
from rtrain.errors import ConfigError, DataError

Split = Literal["train", "valid", "test"]

Ranges = dict[Split, tuple[int, int]]
"""Split -> rows [start, stop) of the data set."""


def check_train_rows(rows: int | None) -> None:
    """Refuse a `data.train_rows` that leaves nothing to train on."""
    if rows is not None and rows < 1:
        raise ConfigError(f"data.train_rows: must be at least 1, or none, got {rows}")


def trained_on(train: tuple[int, int], rows: int | None) -> tuple[int, int]:
    """The last `rows` of the training range, those nearest to validation; none: all of it."""
    start, stop = train
    return (start if rows is None else max(start, stop - rows), stop)


@dataclass(frozen=True, kw_only=True)
class ByTime:
    """The last rows are the test set, those before them validation, the rest is trained on.

    The rows must be sorted by time. Rows of one moment stay together, in the later split.
    """

    in_time: ClassVar[bool] = True

    valid: float = 0.1
    """Fraction of the rows that validate."""
    test: float = 0.1
    """Fraction of the rows, the newest, that test."""

    def __post_init__(self) -> None:
        if not (0 < self.valid < 1 and 0 < self.test < 1 and self.valid + self.test < 1):
            raise ConfigError(
                f"data.split: valid and test must be above 0 and their sum below 1, got {self.valid}, {self.test}"
            )

    def part(self, rows: ParquetRows, time: str, user: str = "") -> tuple[ParquetRows, Ranges]:
        """The rows as they are, and as `ranges`; `user` is not looked at."""
        return rows, self.ranges(rows, time)

    def ranges(self, rows: ParquetRows, time: str) -> Ranges:
        """Row ranges of the three splits.

        Of the column `time` only the row groups are read in which a split ends, where the footers say how early and how
        late each group is and those follow each other; else all. `refuse_disorder` looks within the groups.

        Raises:
            ConfigError: no time column named.
            DataError: row groups out of order, a time missing, or a split that would be empty.
        """
        if not time:
            raise ConfigError(
                "schema.time: it is empty, but data.split=ByTime needs the column that orders the rows. "
                "Name it, or give data.split=Random()"
            )
        spans = rows.spans(time)
        if spans is None or any(after < before for (_, before), (after, _) in pairwise(spans)):
            spans = refuse_disorder(rows, time)
        lasts = [last for _, last in spans]
        total = rows.rows
        test = _moment(rows, time, lasts, total - max(1, round(total * self.test)))
        valid = _moment(rows, time, lasts, min(test, total - round(total * (self.test + self.valid))))
        ranges: Ranges = {"train": (0, valid), "valid": (valid, test), "test": (test, total)}
        for name, (start, stop) in ranges.items():
            if start >= stop:
                refuse_disorder(rows, time)
                raise DataError(
                    f"{rows.uri}: split by {time!r} leaves no row for {name}: too few rows ({total}), or too many of "
                    "one moment. Change data.split.valid and data.split.test, or bring more data"
                )
        return ranges

    def assign(self, feedback: Feedback) -> NDArray[np.int8]:
        """The split of each interaction, as `rtrain.data.holdout.Holdout`.

        Raises:
            DataError: the data have no times, or a split would be empty.
        """
        if not feedback.timed:
            raise DataError(
                "data.split: ByTime needs times, and there are none. Name their column in data.time (a text has none: "
                "bring Parquet), or give data.split=LeaveOneOut()"
            )
        times = np.sort(feedback.time)
        count = len(times)
        test = times[count - max(1, round(count * self.test))]
        valid = times[max(0, count - round(count * (self.test + self.valid)))]
        codes: NDArray[np.int8] = (feedback.time >= valid).astype(np.int8) + (feedback.time >= test).astype(np.int8)
        if len(np.unique(codes)) < 3:
            raise DataError(
                "data.split: by time a split is left without a row: too few rows, or too many of one moment. "
                "Change data.split.valid and data.split.test, or bring more data"
            )
        return codes


def times_of(rows: ParquetRows | Parted, time: str, group: RowGroup) -> NDArray[Any]:
    """The group's times as numbers that compare: integers, floats, or Arrow timestamps as integers.

    Raises:
        DataError: a row without a time, named, or a column that holds no times.
    """
    column = rows.read(group.first_row, group.stop, [time]).column(time)
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        column = column.cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{rows.uri}: the time column {time!r} is {kind}; it must be seconds (a number) or a timestamp")
    bad = column.null_count
    values: NDArray[Any] = column.to_numpy()
    if bad or (values != values).any():
        row = int(np.argmax(column.is_null(nan_is_null=True).to_numpy()))
        raise DataError(f"{rows.name(group)}: {time!r} is missing at row {group.file_row + row}. Fill or drop it")
    return values


def nobody(split: Split, *, hidden: bool, strangers: bool) -> DataError:
    """The error of a split that would ask nothing of anybody.

    `hidden`: there is something that users had before; `strangers`: there is something of users without training.
    """
    why = "too few interactions of each. Bring more data"
    if strangers:
        why = "nobody in it has interactions in training, from which a model could know them. Make it larger"
    if hidden:
        why = "all that it would ask for, the users had before, which data.hide_seen hides. Set data.hide_seen to false"
    return DataError(f"data.split: {split} would be without a user: {why}, or change data.split")


def refuse_disorder(rows: ParquetRows | Parted, time: str) -> list[tuple[Any, Any]]:
    """The first and the last time of each row group, once all rows are seen to be in order; reads the whole column.

    Raises:
        DataError: a row that is older than the one before it, or has no time; names file and row.
    """
    spans: list[tuple[Any, Any]] = []
    for group in rows.row_groups:
        values = times_of(rows, time, group)
        before = spans[-1][1] if spans else values[0]
        steps = np.concatenate([[before], values])
        wrong = steps[1:] < steps[:-1]
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{rows.name(group)}: not sorted by {time!r}: row {group.file_row + row} has {values[row]} after "
                f"{steps[row]}. Sort the data by {time!r}, so that the split by time leaks no future"
            )
        spans.append((values[0], values[-1]))
    return spans


def _moment(rows: ParquetRows, time: str, lasts: list[Any], row: int) -> int:
    """The first row that has the same time as `row`."""
    group = rows.groups(row, row + 1)[0]
    moment = times_of(rows, time, group)[row - group.first_row]
    earliest = rows.row_groups[int(np.searchsorted(np.asarray(lasts), moment, side="left"))]
    return earliest.first_row + int(np.searchsorted(times_of(rows, time, earliest), moment, side="left"))
