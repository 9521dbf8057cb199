"""SIGTERM as a notice: the machine goes soon, so a checkpoint is written and the run ends, or it is ended."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

from rtrain.errors import RunFailed
from rtrain.training.watchdog import end_process


class Preempted(RunFailed):
    """The run was told to stop, and has left a checkpoint of its last step."""

    exit_code = 143


class Notice:
    """While it is entered, SIGTERM sets `given` instead of ending the process; after `grace_s` it does end it.

    A process that is stuck in C runs no Python handler. So a thread hears of the signal too, from the
    descriptor that Python's own C handler writes to, and after `grace_s` (none: never) it leaves every
    thread's stack on stderr and ends the process with 143. Code in C that never gives Python's lock back
    stops that thread as well: such a process is ended by the watchdog's timer, which needs no lock.

    Only Python's main thread may listen to signals; elsewhere (a Ray worker trains in a thread) the
    signal keeps its meaning, and `give` is for whoever else hears of it.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        self.given = False
        self.grace_s = grace_s
        self._before: Any = None
        self._left = threading.Event()

    def give(self) -> None:
        """The notice has come."""
        self.given = True

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._heard)
            self._hears, self._writes = socket.socketpair()
            self._writes.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="rtrain-notice", daemon=True).start()
        return self

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.give()

    def _listen(self) -> None:
        while number := self._hears.recv(1):
            if self._wakeup_before >= 0:
                os.write(self._wakeup_before, number)  # whoever listened before us (asyncio) goes on hearing
            if number[0] != signal.SIGTERM:
                continue
            self.give()
            if self.grace_s is not None and not self._left.wait(self.grace_s):
                end_process(
                    f"told to stop (SIGTERM), and not done {self.grace_s:g} s later (faults.grace_s); this process "
                    "ends. The same command resumes from the last committed checkpoint",
                    code=Preempted.exit_code,
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            self._left.set()
            signal.set_wakeup_fd(self._wakeup_before)
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
            self._writes.close()  # the thread reads the end of it, and ends
