"""SIGTERM as a notice: the machine goes in some seconds, and what was learnt is to be kept."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from rtrain.errors import RunFailed


class Preempted(RunFailed):
    """The run was told to stop, and has left a checkpoint of its last step."""

    exit_code = 143


class Notice:
    """While it is entered, SIGTERM sets `given` instead of ending the process.

    Only Python's main thread may listen to signals; elsewhere (a Ray worker trains in a thread) the
    signal keeps its meaning, and `give` is for whoever else hears of it.
    """

    def __init__(self) -> None:
        self.given = False
        self._before: Any = None

    def give(self) -> None:
        """The notice has come."""
        self.given = True

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._heard)
        return self

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.give()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
