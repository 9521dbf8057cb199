"""What validation or test would tell of training: the same row in two splits, or a later row that trains.

Looked for once a run, before any worker starts, in one pass over the rows and with a bounded memory.

Shape legend: N rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rtrain.data.feedback import Feedback
from rtrain.data.hashed import hashes
from rtrain.data.parquet import ParquetRows
from rtrain.data.parted import Parted
from rtrain.data.split import Ranges, Split
from rtrain.errors import DataError
from rtrain.keyed import Words, drawn
from rtrain.schema import Schema

Leakage = Literal["refuse", "allow"]
MOST_ROWS = 20_000_000
"""Rows that are held against each other, 17 bytes each; of more a share by hash, so that equal rows stay together."""
NAMES: tuple[Split, ...] = ("train", "valid", "test")
DO = "Drop the repeated rows, or set data.leakage to 'allow' if they are meant to be there"
NOTHING_TELLS = (
    "The schema names neither time nor group, so that equal rows may be of different persons or moments: if they are, "
    "set data.leakage to 'allow', or add the column that tells them apart to the schema; else drop the repeated rows"
)


@dataclass(frozen=True)
class _Shared:
    """Rows that two splits have in common."""

    counts: Mapping[tuple[Split, Split], int]
    """Of each pair of splits that has any, how many different rows."""
    first: int
    """Place of one such row in the earlier split of the pair that has most."""
    second: int
    """And in the later one."""

    def spelled(self) -> str:
        """`train and test have 3 rows in common, ...`"""
        parts = [f"{a} and {b} have {n} row{'s' * (n > 1)} in common" for (a, b), n in self.counts.items()]
        return ", ".join(parts)


def refuse_repeats(feedback: Feedback, codes: NDArray[np.int8], *, source: str, pairs: bool) -> None:
    """Refuse an interaction (user, item and time) that two splits have; a later one of the same item is another.

    `codes`: the split of each interaction, [N]. `pairs`: whether a sample is a pair of user and item: without times
    equal pairs are the same interaction then; in histories their places tell them apart.

    Raises:
        DataError: there is one; names the splits, how many, and an example.
    """
    if not feedback.timed and not pairs:
        return
    timed = (feedback.time,) if feedback.timed else ()
    every = drawn(feedback.user, feedback.item, *timed)
    kept = _kept(every, len(every))
    shared = _shared(every[kept], codes[kept])
    if shared is None:
        return
    at = kept[shared.first]
    when = f" at time {feedback.time[at]}" if feedback.timed else ""
    raise DataError(
        f"{source}: {shared.spelled()}{_of_share(len(every))}, such as user {feedback.user[at]} with item "
        f"{feedback.item[at]}{when}: metrics would be of what was trained on. {DO}"
    )


def refuse_shared_rows(rows: ParquetRows | Parted, ranges: Ranges, schema: Schema) -> None:
    """Refuse a row that two splits have, equal in all columns that the schema names.

    Other columns of the files are not looked at: a row's number would make every copy another row.

    `ranges`: the rows of each split; those that `data.train_rows` leaves out are not looked at.

    Raises:
        DataError: there is one; names the splits, how many, and an example.
    """
    found, codes, numbers = list[Words](), list[NDArray[np.int8]](), list[NDArray[np.int64]]()
    named = list(dict.fromkeys([*schema.arrow(label=True).names, *filter(None, [schema.time])]))
    for table, places in rows.pieces(named):
        of = _splits_of(places, ranges)
        every = hashes(table)
        kept = _kept(every, rows.rows)
        kept = kept[of[kept] >= 0]
        found.append(every[kept])
        codes.append(of[kept])
        numbers.append(places[kept])
    shared = _shared(np.concatenate(found), np.concatenate(codes))
    if shared is None:
        return
    every_number = np.concatenate(numbers)
    first, second = (_spelled_row(rows, int(every_number[place])) for place in (shared.first, shared.second))
    raise DataError(
        f"{rows.uri}: {shared.spelled()}{_of_share(rows.rows)}, equal in all columns of the schema, such as "
        f"{first} and {second}: metrics would be of what was trained on. "
        f"{DO if schema.time or schema.group else NOTHING_TELLS}"
    )


def refuse_later(times: Iterable[tuple[Split, Any, Any]], *, source: str) -> None:
    """Refuse a split by time of which a row is not older than all rows of the next split.

    `times`: split, its earliest and its latest time, in the order of time.

    Raises:
        DataError: there is such a row.
    """
    parts = list(times)
    for (before, _, latest), (after, earliest, _) in pairwise(parts):
        if latest >= earliest:
            raise DataError(
                f"{source}: split by time, {before} has a row of time {latest}, but {after} begins at {earliest}: it "
                f"would tell of the future. Sort the data by time, or set data.leakage to 'allow'"
            )


def _kept(every: Words, rows: int) -> NDArray[np.int64]:
    """Places of those that are held against each other."""
    if rows <= MOST_ROWS:
        return np.arange(len(every))
    return np.flatnonzero(every < np.uint64(MOST_ROWS / rows * 2.0**64))


def _of_share(rows: int) -> str:
    return f" (of a sample of {MOST_ROWS / rows:.1%})" if rows > MOST_ROWS else ""


def _splits_of(numbers: NDArray[np.int64], ranges: Ranges) -> NDArray[np.int8]:
    """int8 [N]: the place in `NAMES` of each row's split, -1 of a row that is in none."""
    codes = np.full(len(numbers), -1, np.int8)
    for code, name in enumerate(NAMES):
        start, stop = ranges[name]
        codes[(start <= numbers) & (numbers < stop)] = code
    return codes


def _spelled_row(rows: ParquetRows | Parted, number: int) -> str:
    group = rows.groups(number, number + 1)[0]
    return f"row {rows.file_rows(number, number + 1)[0]} of {rows.name(group)}"


def _shared(every: Words, codes: NDArray[np.int8]) -> _Shared | None:
    """What rows of equal hash have different codes; none where there are none."""
    order = np.argsort(every, kind="stable")
    rising = every[order]
    again = np.flatnonzero(rising[1:] == rising[:-1])
    if not len(again):
        return None
    places = order[np.union1d(again, again + 1)]  # few; the rest is there once
    _, of = np.unique(every[places], return_inverse=True)
    has_CG = np.stack([np.bincount(of[codes[places] == code], minlength=of.max() + 1) > 0 for code in range(3)])
    both = {(a, b): has_CG[a] & has_CG[b] for a, b in combinations(range(3), 2)}
    counts = {(NAMES[a], NAMES[b]): int(groups.sum()) for (a, b), groups in both.items() if groups.any()}
    if not counts:
        return None
    a, b = max(both, key=lambda pair: int(both[pair].sum()))
    inside = of == int(both[a, b].argmax())
    first, second = (int(places[inside & (codes[places] == code)][0]) for code in (a, b))
    return _Shared(counts, first, second)
