"""Batches of one split for one rank, from any position on, without end."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rtrain.data.cursor import Cursor, batches_per_epoch, check_batches, next_bounds, rank_slice
from rtrain.data.order import Order, Window
from rtrain.data.prefetch import Prefetch

B = TypeVar("B", covariant=True)


@dataclass(frozen=True)
class Whole:
    """The global batch that a rank's batch is a share of."""

    rows: int
    """Over all data ranks."""
    places: NDArray[np.int64]
    """Where its rows lie in the last window that it reaches into; all of them, for data that are one window."""
    units: float
    """What its loss is a mean over: its rows, or the sum of their weights; the same on every rank."""
    key: tuple[int | None, int]
    """Seed and epoch: what may differ from one visit of a row to the next is drawn by them."""


class Rows(Protocol[B]):
    """Rows in memory, of which batches of type B are cut."""

    def select(self, indices: NDArray[np.integer]) -> "Rows[B]":
        """The given rows, in their order."""

    def units(self, indices: NDArray[np.integer]) -> float:
        """The given rows' share of `Whole.units`."""

    def batch_of(self, parts: Sequence[Any], whole: Whole) -> B:
        """The rows of all parts as one batch, a rank's share of the `whole` one."""


Load = Callable[[Window], Rows[B]]
"""Reads and encodes a window's rows, in the order of its blocks."""


@dataclass
class _Loaded(Generic[B]):
    epoch: int
    start: int
    columns: Rows[B]
    order: NDArray[np.int64]

    @property
    def stop(self) -> int:
        return self.start + len(self.order)


class Reader(Generic[B]):
    """Iterating yields `(batch, cursor after it)` for ever, epoch after epoch.

    Every rank walks the same global batches and takes its slice of each. What was read ahead does
    not count: `cursor` is the position behind the last batch that was handed out, and a new
    iteration starts there.

    Raises:
        ConfigError: a batch with fewer rows than ranks, or a rank outside the world.
        DataError: when iterating: a cursor of other data, or a value that cannot be used.
    """

    def __init__(
        self,
        load: Load[B],
        order: Order,
        *,
        global_batch: int,
        rank: int,
        world_size: int,
        cursor: Cursor,
        prefetch: int = 2,
    ):
        check_batches(order.rows, global_batch, rank, world_size)
        next_bounds(cursor, order.rows, global_batch)
        self.batches_per_epoch = batches_per_epoch(order.rows, global_batch)
        self.cursor = cursor
        self._load = load
        self._order = order
        self._global_batch = global_batch
        self._rank = rank
        self._world_size = world_size
        self._prefetch = prefetch
        self._running: Prefetch[tuple[B, Cursor]] | None = None
        self._closed = False
        self._turn = 0

    def __iter__(self) -> Iterator[tuple[B, Cursor]]:
        if self._closed:
            return
        self._end()
        turn = self._turn
        made = batches(
            self._load,
            self._order,
            global_batch=self._global_batch,
            rank=self._rank,
            world_size=self._world_size,
            cursor=self.cursor,
            ahead=self._prefetch > 0,
        )
        running = self._running = Prefetch(made, self._prefetch) if self._prefetch else None
        try:
            for batch, cursor in running or made:
                if turn != self._turn:
                    return
                self.cursor = cursor
                yield batch, cursor
        finally:
            # Reached also when the iterator is dropped half-way.
            (running or made).close()

    def close(self) -> None:
        """End the thread and every iteration; the reader is of no further use."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._turn += 1
        if self._running is not None:
            self._running.close()
            self._running = None


def batches(
    load: Load[B],
    order: Order,
    *,
    global_batch: int,
    rank: int,
    world_size: int,
    cursor: Cursor,
    ahead: bool = False,
    epochs: int | None = None,
) -> Generator[tuple[B, Cursor], None, None]:
    """The batches of one rank from `cursor` on, each with the position behind it.

    Args:
        load: gives a window's rows.
        order: which rows come when.
        global_batch: most rows of a batch, over all ranks.
        rank: this data rank.
        world_size: number of data ranks.
        cursor: where to begin.
        ahead: let a thread load the next window while this one is used up.
        epochs: stop when this many are complete, counted from the run's first; none: never.
    """
    source = _windows(load, order, cursor, epochs)
    windows = Prefetch(source, 1) if ahead else source
    try:
        loaded = None
        while epochs is None or cursor.epoch < epochs:
            start, stop = next_bounds(cursor, order.rows, global_batch)
            first, last = rank_slice(start, stop, rank, world_size)
            at, parts, units = start, [], 0.0
            while at < stop:  # also what is other ranks': all count in what the loss is a mean over
                while loaded is None or loaded.epoch < cursor.epoch or loaded.stop <= at:
                    loaded = None  # before the next one is made: two windows are enough in memory
                    loaded = next(windows)
                upto = min(stop, loaded.stop)
                here = loaded.order[at - loaded.start : upto - loaded.start]
                units += loaded.columns.units(here)
                local = here[max(0, first - at) : max(0, last - at)]
                if len(local):
                    parts.append(loaded.columns.select(local))
                at = upto
            whole = Whole(rows=stop - start, places=here, units=units, key=(order.seed, cursor.epoch))
            cursor = cursor.after(stop, order.rows)
            yield parts[0].batch_of(parts, whole), cursor
    finally:
        windows.close()


def _windows(load: Load[B], order: Order, cursor: Cursor, epochs: int | None) -> Generator[_Loaded[B], None, None]:
    for epoch in count(cursor.epoch) if epochs is None else range(cursor.epoch, epochs):
        for window in order.windows(epoch):
            if epoch > cursor.epoch or window.stop > cursor.sample:
                yield _Loaded(epoch, window.start, load(window), order.permutation(epoch, window))
