"""Brings what is spooled to a tracker, in a thread of its own: a server that is away or slow holds no step up."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rtrain.errors import one_line
from rtrain.tracking.spool import Spool

EVERY_S = 2.0
"""Seconds between two deliveries: each is a request, and a transaction of the store."""
AGAIN_S = (5.0, 60.0)
"""Seconds until a delivery that failed is tried again: at first, and at most."""


class Courier:
    """Connects, then delivers, and tries both again until it is stopped.

    Args:
        spool: whose lines are delivered.
        connect: gets ready; called until it raises no more.
        deliver: stores lines, for good, or raises; lines that it has stored already may come again.
        forgets: whether what was delivered is safe then. If not, whoever knows calls `spool.forget`.
    """

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], None],
        deliver: Callable[[list[dict[str, Any]]], None],
        *,
        forgets: bool = True,
        every_s: float = EVERY_S,
        again_s: tuple[float, float] = AGAIN_S,
    ):
        self._spool, self._connect, self._deliver, self._forgets = spool, connect, deliver, forgets
        self._every_s, self._again_s = every_s, again_s
        self.connected = False
        self.problem = ""
        """Why the last try failed; empty where it did not."""
        self._tries = 0
        self._changed = threading.Condition()
        self._asked = self._stopped = False
        self._at_work = threading.Lock()
        self._thread = threading.Thread(target=self._go, name="rtrain-courier", daemon=True)
        self._thread.start()

    def settle(self, within_s: float) -> bool:
        """Deliver now; whether all has been. Ends at once when a try that begins after this call fails."""
        until = time.monotonic() + within_s
        with self._changed:
            enough = self._tries + (2 if self._at_work.locked() else 1)  # of one under way the end tells nothing yet
            self._asked = True
            self._changed.notify_all()
            while not self._all_done and not (self.problem and self._tries >= enough):
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._asked = True
                self._changed.notify_all()
                self._changed.wait(min(left, 0.05))
            return self._all_done

    @contextmanager
    def pause(self, within_s: float) -> Iterator[bool]:
        """Nothing is delivered meanwhile; false where a delivery is under way for longer than that."""
        got = self._at_work.acquire(timeout=within_s)
        try:
            yield got
        finally:
            if got:
                self._at_work.release()

    def stop(self, within_s: float) -> None:
        """No delivery begins from now on; one that is under way is given so long."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(within_s)

    @property
    def _all_done(self) -> bool:
        return self.connected and self._spool.is_empty and not self._at_work.locked()

    def _go(self) -> None:
        wait_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._stopped, timeout=wait_s)
                if self._stopped:
                    return
                self._asked = False
            with self._at_work:
                problem = self._try()
            with self._changed:
                failed_before = bool(self.problem)
                self.problem, self._tries = problem, self._tries + 1
                self._changed.notify_all()
            if not problem:
                wait_s = self._every_s
            else:
                first, most = self._again_s
                wait_s = min(most, wait_s * 2) if failed_before else first

    def _try(self) -> str:
        """One try at all there is; why it failed, or nothing."""
        try:
            if not self.connected:
                self._connect()
                self.connected = True
            while not self._stopped:
                lines, until = self._spool.read()
                if not lines:
                    return ""
                self._deliver(lines)
                self._spool.done(until, forget=self._forgets)
        except Exception as error:  # SQLAlchemy, requests and MLflow have no common root
            return one_line(error)
        return ""
