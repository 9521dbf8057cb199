"""Batches of one split for one rank, from any position on, without end."""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rtrain.data.cursor import Cursor, batches_per_epoch, next_bounds
from rtrain.data.order import Order, Window
from rtrain.data.prefetch import Prefetch

B = TypeVar("B", covariant=True)


@dataclass(frozen=True)
class Whole:
    """The global batch that a rank's batch is a share of."""

    rows: int
    """Over all data ranks."""
    places: NDArray[np.int64]
    """Where its rows lie in their window, for data that are one."""
    key: tuple[int | None, int]
    """Seed and epoch: what may differ from one visit of a row to the next is drawn by them."""


class Rows(Protocol[B]):
    """Rows in memory, of which batches of type B are cut."""

    def select(self, indices: NDArray[np.integer]) -> "Rows[B]":
        """The given rows, in their order."""

    def batch_of(self, parts: Sequence[Any], whole: Whole) -> B:
        """The rows of all parts as one batch, a rank's share of the `whole` one."""


Load = Callable[[Window], Rows[B]]
"""Reads and encodes a window's rows, in the order of its blocks."""


Ready = Callable[[Any], Any]
"""Makes of a batch what is handed out, in the thread that makes batches."""


def as_it_is(batch: Any) -> Any:
    """Ready as it is made."""
    return batch


@dataclass
class _Loaded(Generic[B]):
    epoch: int
    window: Window
    rows: Rows[B]
    order: NDArray[np.int64]


class Reader(Generic[B]):
    """Iterating yields `(batch, cursor after it)` for ever, epoch after epoch.

    Every rank walks the same global batches, takes its share of each, and loads the windows of its strata alone.
    What was read ahead does not count: `cursor` is the position behind the last batch that was handed out, and a
    new iteration starts there.

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
        ready: Ready = as_it_is,
    ):
        order.check(global_batch, rank, world_size)
        next_bounds(cursor, order.rows, global_batch)
        self.batches_per_epoch = batches_per_epoch(order.rows, global_batch)
        self.cursor = cursor
        self._load = load
        self._order = order
        self._global_batch = global_batch
        self._rank = rank
        self._world_size = world_size
        self._prefetch = prefetch
        self._ready = ready
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
            ready=self._ready,
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
    ready: Ready = as_it_is,
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
        ready: gives what is handed out of each.
    """
    source = _windows(load, order, cursor, rank, world_size, epochs)
    held = _Held(Prefetch(source, 1) if ahead else source)
    try:
        while epochs is None or cursor.epoch < epochs:
            start, stop = next_bounds(cursor, order.rows, global_batch)
            parts, places = held.gather(order, cursor.epoch, start, stop, rank, world_size)
            whole = Whole(rows=stop - start, places=places, key=(order.seed, cursor.epoch))
            cursor = cursor.after(stop, order.rows)
            yield ready(parts[0].batch_of(parts, whole)), cursor
    finally:
        held.windows.close()


def scanned(
    load: Load[B], order: Order, cuts: Sequence[int], together: Sequence[int], ready: Ready = as_it_is
) -> Generator[B, None, None]:
    """The rows of `order`, which are one rank's own, once: batch n is rows [cuts[n], cuts[n + 1]).

    `together`: rows of each batch over all ranks; `ready`: gives what is handed out of each.
    """
    held = _Held(_windows(load, order, Cursor(), 0, 1, 1))
    try:
        for (start, stop), rows in zip(pairwise(cuts), together, strict=True):
            parts, places = held.gather(order, 0, start, stop, 0, 1)
            yield ready(parts[0].batch_of(parts, Whole(rows=rows, places=places, key=(order.seed, 0))))
    finally:
        held.windows.close()


class _Held(Generic[B]):
    """The windows in memory: of each stratum of a rank the one that is in use, and any that came before its time."""

    def __init__(self, windows: "Prefetch[_Loaded[B]] | Generator[_Loaded[B], None, None]"):
        self.windows = windows
        self._of: dict[int, deque[_Loaded[B]]] = defaultdict(deque)

    def gather(
        self, order: Order, epoch: int, start: int, stop: int, rank: int, world_size: int
    ) -> tuple[list[Rows[B]], NDArray[np.int64]]:
        """A rank's rows of the epoch's positions [start, stop), and `Whole.places`."""
        parts = list[Rows[B]]()
        for part in order.share(start, stop, rank, world_size):
            at = part.first
            while at < part.stop:
                loaded = self.having(epoch, part.stratum, at)
                begins, upto = loaded.window.start, min(part.stop, loaded.window.stop)
                parts.append(loaded.rows.select(loaded.order[at - begins : upto - begins]))
                places = loaded.order[max(0, start - begins) : max(0, stop - begins)]
                at = upto
                del loaded  # before another window is made
        return parts, places

    def having(self, epoch: int, stratum: int, at: int) -> _Loaded[B]:
        """The window with a position of a stratum; what lies before it is let go."""
        mine = self._of[stratum]
        while not mine or (mine[0].epoch, mine[0].window.stop) <= (epoch, at):
            if mine:
                mine.popleft()  # before another one is made
            if not mine:
                loaded = next(self.windows)
                self._of[loaded.window.stratum].append(loaded)
        return mine[0]


def _windows(
    load: Load[B], order: Order, cursor: Cursor, rank: int, world_size: int, epochs: int | None
) -> Generator[_Loaded[B], None, None]:
    """Those of the rank's strata from the cursor on, as they come into use."""
    owned = order.owned(rank, world_size)
    for epoch in count(cursor.epoch) if epochs is None else range(cursor.epoch, epochs):
        windows = [window for stratum in owned for window in order.windows(epoch, stratum)]
        for window in sorted(windows, key=order.position):
            if epoch > cursor.epoch or order.ends(window) > cursor.sample:
                yield _Loaded(epoch, window, load(window), order.permutation(epoch, window))
