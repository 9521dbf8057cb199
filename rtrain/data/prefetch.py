"""A thread that keeps the next items of an iterator ready."""

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from rtrain.errors import RtrainWarning

T = TypeVar("T")

NAME = "rtrain-prefetch"
"""Name of the threads."""
CLOSE_S = 30.0
"""Seconds that a thread gets to end; it stops after the item that it is at."""


class _Shelf(Generic[T]):
    """What the thread and its consumer share. The thread holds only this, so that a `Prefetch` can be dropped."""

    def __init__(self, depth: int):
        self.changed = threading.Condition()
        self.depth = depth
        self.ready: deque[T] = deque()
        self.error: BaseException | None = None
        self.ended = False
        self.stopped = False
        self.made_by = threading.current_thread()


class Prefetch(Iterator[T]):
    """Iterates over `items`, of which a thread makes up to `depth` ahead (at least 1).

    An error of the thread is raised where the item would have come. The thread ends, and closes
    the iterator it reads if that is a generator, on `close`, when this object is dropped, and
    when the interpreter exits.
    """

    def __init__(self, items: Iterator[T], depth: int):
        self._shelf: _Shelf[T] = _Shelf(depth)
        thread = threading.Thread(target=_fill, args=(self._shelf, items), name=NAME, daemon=True)
        # Also run at exit: a daemon thread that is inside Arrow while the interpreter goes down aborts the process.
        self._stop = weakref.finalize(self, _stop, self._shelf, thread)
        thread.start()

    def __next__(self) -> T:
        shelf = self._shelf
        with shelf.changed:
            shelf.changed.wait_for(lambda: shelf.ready or shelf.ended or shelf.stopped)
            if shelf.ready and not shelf.stopped:
                item = shelf.ready.popleft()
                shelf.changed.notify_all()
                return item
            error, shelf.error = shelf.error, None
        try:
            raise error if error is not None else StopIteration
        finally:
            del error  # else it would hold this frame, and this frame it

    def close(self) -> None:
        """End the thread; returns when it has ended, or after `CLOSE_S` with a warning. The rest is dropped."""
        self._stop()


def _fill(shelf: _Shelf[T], items: Iterator[T]) -> None:
    try:
        while _room(shelf):
            item = next(items)
            with shelf.changed:
                shelf.ready.append(item)
                shelf.changed.notify_all()
            del item
    except StopIteration:
        pass
    except BaseException as raised:
        shelf.error = raised
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
        with shelf.changed:
            shelf.ended = True
            shelf.changed.notify_all()


def _room(shelf: _Shelf[T]) -> bool:
    """Wait for room before the next item is made, not after: so no more than `depth` are ever in memory."""
    with shelf.changed:
        shelf.changed.wait_for(lambda: shelf.stopped or len(shelf.ready) < shelf.depth)
        return not shelf.stopped


def _stop(shelf: _Shelf[T], thread: threading.Thread) -> None:
    with shelf.changed:
        shelf.stopped = True
        shelf.ready.clear()
        shelf.changed.notify_all()
    # The garbage collector may call this in any thread. A prefetching one waits only for those that it
    # made itself: were it to wait for one that waits for it, neither would end.
    here = threading.current_thread()
    if here.name != NAME or here is shelf.made_by:
        thread.join(CLOSE_S)
        if thread.is_alive():
            warnings.warn(
                f"a reader is stuck: it has not ended {CLOSE_S:g} s after it was told to", RtrainWarning, stacklevel=2
            )
