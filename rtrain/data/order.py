"""The order in which an epoch visits its rows: shuffled, repeatable, the same at any world size.

Row groups are shuffled first; then windows of consecutive row groups are filled up to
`window_rows`, and the rows of a window are shuffled among themselves. So data of any size is
read row group by row group, with never more than a window of it in memory, and data that fits in
one window is shuffled fully.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError

Block = tuple[int, int]
"""Rows [first, stop) of the data set that are read together: a row group, or a split's part of it."""


@dataclass(frozen=True)
class Window:
    """The rows that are in memory together."""

    index: int
    """Its number in the epoch."""
    start: int
    """Position of its first row in the epoch's order."""
    blocks: tuple[Block, ...]
    """What to read, in the data set's order, so that a single window has the same rows in every epoch."""

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return sum(stop - first for first, stop in self.blocks)

    @property
    def stop(self) -> int:
        """Position behind its last row."""
        return self.start + self.rows


class Order:
    """The visiting order of (seed, epoch); without a seed it is the data set's own order."""

    def __init__(self, blocks: Sequence[Block], *, seed: int | None, window_rows: int = 1_000_000):
        if window_rows < 1:
            raise ConfigError(f"data.window_rows: must be at least 1, got {window_rows}")
        if seed is not None and seed < 0:
            raise ConfigError(f"seed: must be at least 0, got {seed}")
        self.blocks = tuple(blocks)
        self.rows = sum(stop - first for first, stop in self.blocks)
        self.seed = seed
        self._window_rows = window_rows

    def windows(self, epoch: int) -> list[Window]:
        """The epoch's windows, in the order of visit.

        A block is never cut, because reading a part of a row group costs as much as all of it;
        so a block above `window_rows` is a window by itself.
        """
        count = len(self.blocks)
        visit = range(count) if self.seed is None else _shuffled(count, (self.seed, epoch, 0)).tolist()
        filled: list[list[Block]] = []
        room = 0
        for number in visit:
            block = self.blocks[number]
            size = block[1] - block[0]
            if size > room:
                filled.append([])
                room = max(self._window_rows, size)
            filled[-1].append(block)
            room -= size
        windows: list[Window] = []
        for index, blocks in enumerate(filled):
            start = windows[-1].stop if windows else 0
            windows.append(Window(index, start, tuple(sorted(blocks))))
        return windows

    def permutation(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """int64 [window.rows]: at each position of the window, the number of its row among the window's rows."""
        if self.seed is None:
            return np.arange(window.rows)
        return _shuffled(window.rows, (self.seed, epoch, 1 + window.index))


def _shuffled(count: int, key: tuple[int, int, int]) -> NDArray[np.int64]:
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
