"""Which interactions train, validate and test: of each user or of all, by order or by chance.

All of them part labelled rows of a table too (`part`), `Random` also those that have neither user nor time.

Shape legend: N interactions, sorted by user and then by time; U users.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from rtrain.data.by_user import ByUser, by_user
from rtrain.data.feedback import Feedback
from rtrain.data.parquet import ParquetRows
from rtrain.data.parted import ByChance, Listed, Parted
from rtrain.data.split import Ranges
from rtrain.errors import ConfigError, DataError
from rtrain.keyed import drawn

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
        return _last_two(feedback.starts()[1])

    def part(self, rows: ParquetRows, time: str, user: str = "") -> tuple[Parted, Ranges]:
        """Rows of Parquet with each split in one piece, and the splits' ranges; of one moment the row stored last is
        the last.

        Raises:
            ConfigError: no column of times, or of users, is named.
            DataError: as `by_user`.
        """
        if not time:
            raise ConfigError(
                "schema.time: it is empty, but data.split=LeaveOneOut needs the column that orders each user's rows. "
                "Name it, or give data.split=RandomPerUser()"
            )
        found = by_user(rows, user, time, split="LeaveOneOut")
        return _in_pieces(rows, found, _last_two(found.starts))


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
        return _by_chance(self, feedback.starts()[1], np.arange(len(feedback.user)))

    def part(self, rows: ParquetRows, time: str, user: str = "") -> tuple[Parted, Ranges]:
        """Rows of Parquet with each split in one piece, and the splits' ranges; `time` is not looked at.

        Raises:
            ConfigError: no column of users is named.
            DataError: as `by_user`.
        """
        found = by_user(rows, user, "", split="RandomPerUser")
        return _in_pieces(rows, found, _by_chance(self, found.starts, found.order))


@dataclass(frozen=True, kw_only=True)
class Random(_Shares):
    """Of all interactions a share, drawn by chance."""

    seed: int = 0
    """Another seed is another split; the run's own seed has no part in it."""

    def assign(self, feedback: Feedback) -> Codes:
        """[N]"""
        count = len(feedback.user)
        return _by_chance(self, np.array([0, count]), np.arange(count))

    def part(self, rows: ParquetRows, time: str, user: str = "") -> tuple[Parted, Ranges]:
        """Rows of Parquet with each split in one piece, and the splits' ranges; of large data shares are near enough.

        `time`, `user`: not looked at; of rows in time, some train that are newer than some that test.

        Raises:
            DataError: a split that would be empty.
        """
        parted = Parted(rows, ByChance(valid=self.valid, test=self.test, seed=self.seed))
        train, valid, test = parted.sizes
        if not all(parted.sizes):
            raise DataError(
                f"{rows.uri}: parted by chance, {train} rows train, {valid} validate and {test} test: too few rows "
                f"({rows.rows}). Change data.split.valid and data.split.test, or bring more data"
            )
        return parted, _ranges(parted)


def _in_pieces(rows: ParquetRows, found: ByUser, codes: Codes) -> tuple[Parted, Ranges]:
    """`codes`: of each row in the order of users, [N]."""
    every = np.empty(len(codes), np.int8)
    every[found.order] = codes
    parted = Parted(rows, Listed(every))
    return parted, _ranges(parted)


def _ranges(parted: Parted) -> Ranges:
    train, valid, _ = parted.sizes
    return {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, parted.rows)}


def _last_two(starts: NDArray[np.int64]) -> Codes:
    """`starts`: where each user's rows begin, and the end of all, [U + 1]."""
    codes = np.zeros(starts[-1], np.int8)
    ends = starts[1:][np.diff(starts) >= 3]
    codes[ends - 1], codes[ends - 2] = TEST, VALID
    return codes


def _by_chance(split: RandomPerUser | Random, starts: NDArray[np.int64], numbers: NDArray[np.int64]) -> Codes:
    """`starts`: where the rows of whom shares are drawn begin, and the end of all; `numbers`: by which, [N]."""
    sizes = np.diff(starts)
    order = np.lexsort((drawn(split.seed, numbers), np.repeat(np.arange(len(sizes)), sizes)))
    codes = np.zeros(len(numbers), np.int8)
    place = np.arange(len(numbers)) - np.repeat(starts[:-1], sizes)
    # At least one of either, where three can be parted; what is left trains.
    tests, valids = (np.where(sizes < 3, 0, np.maximum(1, (sizes * f).astype(int))) for f in (split.test, split.valid))
    from_end = np.repeat(sizes, sizes) - place
    codes[order[from_end <= np.repeat(tests + valids, sizes)]] = VALID
    codes[order[from_end <= np.repeat(tests, sizes)]] = TEST
    return codes
