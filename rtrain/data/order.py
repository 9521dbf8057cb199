"""The order in which an epoch visits its rows: shuffled, repeatable, the same at any world size.

Data that fit into `window_rows` are shuffled fully. Others are parted into V strata, a power of two that follows from
the row groups and `window_rows` alone, never from the number of ranks. A stratum is a contiguous 1/V of the rows in
file order. Within it row groups are shuffled, consecutive ones fill windows of `window_rows` / V, and the rows of a
window are shuffled among themselves. Position x of the epoch is row x // V of stratum x % V, so every batch has rows of
all strata, and a rank that owns some strata reads those alone: 1 / ranks of the row groups, up to V ranks.

Shape legend: V strata, W data ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from rtrain.data.cursor import check_batches
from rtrain.errors import ConfigError
from rtrain.rounding import ceil_div

Block = tuple[int, int]
"""Rows [first, stop) of the data set that are read together: a row group, or a part of it."""
MOST_READ = 1.25
"""Rows that all ranks together decode for each row of an epoch, because a row group that two strata have is read by
both: more strata than keep to it there are not."""


@dataclass(frozen=True)
class Window:
    """The rows of a stratum that are in memory together."""

    index: int
    """Its number in the stratum's epoch."""
    start: int
    """Position of its first row in the stratum's order."""
    blocks: tuple[Block, ...]
    """What to read, in the data set's order, so that a single window has the same rows in every epoch."""
    stratum: int = 0

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return sum(stop - first for first, stop in self.blocks)

    @property
    def stop(self) -> int:
        """Position behind its last row."""
        return self.start + self.rows


@dataclass(frozen=True)
class Part:
    """Rows of one stratum: those at the positions [first, stop) of its own order."""

    stratum: int
    first: int
    stop: int


class Order:
    """The visiting order of (seed, epoch); without a seed it is the data set's own order, in one stratum."""

    def __init__(self, blocks: Sequence[Block], *, seed: int | None, window_rows: int = 1 << 20):
        if window_rows < 1:
            raise ConfigError(f"data.window_rows: must be at least 1, got {window_rows}")
        if seed is not None and seed < 0:
            raise ConfigError(f"seed: must be at least 0, got {seed}")
        self.blocks = tuple(blocks)
        self.rows = sum(stop - first for first, stop in self.blocks)
        self.seed = seed
        self.strata = 1 if seed is None else most_strata(self.blocks, window_rows)
        """V."""
        self._window_rows = max(1, window_rows // self.strata)
        self._parts = _parted(self.blocks, self.strata)

    def check(self, global_batch: int, rank: int, world_size: int) -> None:
        """Refuse, before anything is read, batches of which some rank could get nothing.

        Raises:
            ConfigError: that, or a rank outside the world.
        """
        # Of strata that ranks do not divide evenly a share may be a few rows short.
        least = 1 if self.strata == 1 or world_size == 1 else 2
        check_batches(self.rows, global_batch, rank, world_size, least=least)

    def windows(self, epoch: int, stratum: int = 0) -> list[Window]:
        """The epoch's windows of one stratum, in the order of visit.

        A block is not cut, because reading a part of a row group costs as much as all of it; so a block above the
        window's rows is a window by itself. The first window of each stratum is smaller by another part, so that
        not all strata turn to their next window in the same step.
        """
        blocks = self._parts[stratum]
        if self.seed is not None:
            blocks = tuple(blocks[number] for number in _shuffled(len(blocks), self._key(stratum, epoch, 0)))
        rooms = chain([self._window_rows * stratum // self.strata or self._window_rows], repeat(self._window_rows))
        filled: list[list[Block]] = []
        room = 0
        for block in blocks:
            size = block[1] - block[0]
            if size > room:
                filled.append([])
                room = max(next(rooms), size)
            filled[-1].append(block)
            room -= size
        windows: list[Window] = []
        for index, of in enumerate(filled):
            start = windows[-1].stop if windows else 0
            windows.append(Window(index, start, tuple(sorted(of)), stratum))
        return windows

    def permutation(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """int64 [window.rows]: at each position of the window, the number of its row among the window's rows."""
        if self.seed is None:
            return np.arange(window.rows)
        return _shuffled(window.rows, self._key(window.stratum, epoch, 1 + window.index))

    def share(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Part]:
        """What data rank `rank` takes of the epoch's positions [start, stop).

        A batch's rows are sorted by stratum (in an order that scatters neighbours, so that what a rank has is from all
        over the files) and place in it; a rank takes a run of that, so that all ranks' rows one after the other are the
        same at any W. Shares differ by a row where W divides V or V divides W, else by a few.
        """
        count, bits = self.strata, self.strata.bit_length() - 1
        (low, below), (high, above) = divmod(rank * count, world_size), divmod((rank + 1) * count, world_size)
        for place in range(low, high + (above > 0)):
            stratum = _reversed(place, bits)
            before = self._before(stratum, start)
            size = self._before(stratum, stop) - before
            first = size * below // world_size if place == low else 0
            last = size * above // world_size if place == high else size
            if first < last:
                yield Part(stratum, before + first, before + last)

    def owned(self, rank: int, world_size: int) -> list[int]:
        """The strata that a rank takes rows of."""
        low, high = rank * self.strata // world_size, ceil_div((rank + 1) * self.strata, world_size)
        return [_reversed(place, self.strata.bit_length() - 1) for place in range(low, high)]

    def position(self, window: Window) -> int:
        """The epoch's position of a window's first row."""
        return window.start * self.strata + window.stratum

    def ends(self, window: Window) -> int:
        """The epoch's position behind a window's last row."""
        return (window.stop - 1) * self.strata + window.stratum + 1

    def _before(self, stratum: int, position: int) -> int:
        """Rows of the stratum before a position of the epoch."""
        return max(0, ceil_div(position - stratum, self.strata))

    def _key(self, stratum: int, epoch: int, of: int) -> tuple[int, ...]:
        assert self.seed is not None
        return (self.seed, epoch, of, *((stratum,) if self.strata > 1 else ()))


def most_strata(blocks: Sequence[Block], window_rows: int) -> int:
    """V: 1 for rows that fit into `window_rows`, else the largest power of two that leaves each stratum room for its
    largest block, and cuts few of them."""
    rows = sum(stop - first for first, stop in blocks)
    found = count = 1
    while rows > window_rows and 2 * count <= len(blocks):
        count *= 2
        parts = _parted(blocks, count)
        largest = sum(max((stop - first for first, stop in of), default=0) for of in parts)
        sizes = [stop - first for first, stop in blocks]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ends = np.cumsum([sum(stop - first for first, stop in of) for of in parts])[:-1]
        cut = np.searchsorted(starts, ends, side="right") - 1  # the block that holds each end
        inside = starts[cut] != ends
        read = rows + sum(sizes[at] for at in cut[inside])
        if largest <= window_rows and read <= MOST_READ * rows:
            found = count
    return found


def _parted(blocks: Sequence[Block], count: int) -> list[tuple[Block, ...]]:
    """The blocks of each stratum: stratum q has the next ceil((rows - q) / count) rows in file order."""
    rows = sum(stop - first for first, stop in blocks)
    parts: list[tuple[Block, ...]] = []
    left = list(reversed(blocks))
    for stratum in range(count):
        wanted, mine = ceil_div(rows - stratum, count), list[Block]()
        while wanted:
            first, stop = left.pop()
            taken = min(stop - first, wanted)
            mine.append((first, first + taken))
            if first + taken < stop:
                left.append((first + taken, stop))
            wanted -= taken
        parts.append(tuple(mine))
    return parts


def _reversed(number: int, bits: int) -> int:
    """The number whose binary digits, `bits` of them, are those of `number` in reverse."""
    return int(f"{number:0{bits}b}"[::-1], 2) if bits else 0


def _shuffled(count: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """A permutation of 0..count-1 drawn from `key`.

    numpy promises that a bit generator's raw stream stays the same between its versions, but not
    what `Generator.permutation` makes of it; a run must resume under another numpy. So the raw
    bits are sorted here, each with its number in its low bits: no two are equal, so that every
    sort algorithm gives the same.
    """
    low = np.uint64(max(count - 1, 1).bit_length())
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    drawn = (raw >> low << low) | np.arange(count, dtype=np.uint64)
    drawn.sort()
    return (drawn & ((np.uint64(1) << low) - np.uint64(1))).astype(np.int64)
