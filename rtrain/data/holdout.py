"""Which interactions train, validate and test: of each user or of all, by order or by chance.

`Random` parts labelled rows too, also those that no time orders.

Shape legend: N interactions, sorted by user and then by time.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from rtrain.data.feedback import Feedback
from rtrain.data.keyed import drawn
from rtrain.data.parquet import ParquetRows
from rtrain.data.parted import Parted
from rtrain.data.split import Ranges
from rtrain.errors import ConfigError, DataError

Codes = NDArray[np.int8]
TRAIN, VALID, TEST = 0, 1, 2


class Holdout(Protocol):
    """A way to part interactions."""

    in_time: ClassVar[bool]
    """Whether all that trains is older than all that validates, and that than all that tests."""

    def assign(self, feedback: Feedback) -> Codes:
        """TRAIN, VALID or TEST for each interaction, [N]."""


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """Each user's last interaction tests, the one before it validates; a user of fewer than three only trains."""

    in_time: ClassVar[bool] = False

    def assign(self, feedback: Feedback) -> Codes:
        """[N]"""
        _, starts = feedback.starts()
        codes = np.zeros(len(feedback.user), np.int8)
        ends = starts[1:][np.diff(starts) >= 3]
        codes[ends - 1], codes[ends - 2] = TEST, VALID
        return codes


@dataclass(frozen=True, kw_only=True)
class _Shares:
    in_time: ClassVar[bool] = False

    valid: float = 0.1
    """Fraction that validates."""
    test: float = 0.1
    """Fraction that tests."""

    def __post_init__(self) -> None:
        if not (0 < self.valid < 1 and 0 < self.test < 1 and self.valid + self.test < 1):
            raise ConfigError(
                f"data.split: valid and test must be above 0 and their sum below 1, got {self.valid}, {self.test}"
            )


@dataclass(frozen=True, kw_only=True)
class RandomPerUser(_Shares):
    """Of each user's interactions a share, drawn by chance; a user of fewer than three only trains."""

    seed: int = 0
    """Another seed is another split; the run's own seed has no part in it."""

    def assign(self, feedback: Feedback) -> Codes:
        """[N]"""
        _, starts = feedback.starts()
        return _by_chance(self, feedback.user, starts)


@dataclass(frozen=True, kw_only=True)
class Random(_Shares):
    """Of all interactions a share, drawn by chance."""

    seed: int = 0
    """Another seed is another split; the run's own seed has no part in it."""

    def assign(self, feedback: Feedback) -> Codes:
        """[N]"""
        count = len(feedback.user)
        return _by_chance(self, np.zeros(count, np.int64), np.array([0, count]))

    def part(self, rows: ParquetRows, time: str) -> tuple[Parted, Ranges]:
        """Rows of Parquet with each split in one piece, and the splits' ranges; of large data shares are near enough.

        `time`: not looked at; of rows in time, some train that are newer than some that test.

        Raises:
            DataError: a split that would be empty.
        """
        parted = Parted(rows, valid=self.valid, test=self.test, seed=self.seed)
        train, valid, test = parted.sizes
        if not all(parted.sizes):
            raise DataError(
                f"{rows.uri}: parted by chance, {train} rows train, {valid} validate and {test} test: too few rows "
                f"({rows.rows}). Change data.split.valid and data.split.test, or bring more data"
            )
        return parted, {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, rows.rows)}


def _by_chance(split: RandomPerUser | Random, key: NDArray[np.int64], starts: NDArray[np.int64]) -> Codes:
    """`key`: rising, of whom shares are drawn; `starts`: where each one's rows begin, and the end of all."""
    order = np.lexsort((drawn(split.seed, np.arange(len(key))), key))
    codes = np.zeros(len(key), np.int8)
    sizes = np.diff(starts)
    place = np.arange(len(key)) - np.repeat(starts[:-1], sizes)
    # At least one of either, where three can be parted; what is left trains.
    tests, valids = (np.where(sizes < 3, 0, np.maximum(1, (sizes * f).astype(int))) for f in (split.test, split.valid))
    from_end = np.repeat(sizes, sizes) - place
    codes[order[from_end <= np.repeat(tests + valids, sizes)]] = VALID
    codes[order[from_end <= np.repeat(tests, sizes)]] = TEST
    return codes
