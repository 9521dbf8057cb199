"""A rank that does nothing any more ends itself, and says where it stood.

A collective that gets no answer ends with its group's time-out. Nothing ends a rank that is stuck
outside of one: in a reader, in storage, in a callback, alone in its world. So each rank says what it
does (`beat`), and a thread looks whether it still says so.
"""

import faulthandler
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rtrain.storage import Folder

STACKS = "stacks"
"""Folder of a run in which a rank that ends itself leaves the stacks of its threads."""
EXIT_HUNG = 70
FIRST = "set-up"
BEAT = re.compile(r"\(beat (\d+)\)")
SET_UP = 6
"""Times as long may pass before the first step: whole checkpoints are read then, and tables made."""
LINGER_S = 3.0
"""Seconds that it stays after that: once one process of a world ends, the others are killed, and they write too."""
WRITE_S = 10.0
"""Seconds that the storage gets to take the stacks; it may be what hangs. They are on stderr in any case."""


class Watchdog:
    """Watches this rank; a context manager. `silent_s`: seconds without a beat after which the process ends."""

    def __init__(self, folder: Folder, *, who: str, silent_s: float):
        self.folder, self.who, self.silent_s = folder, who, silent_s
        self.name = who.replace(" ", "-")
        """Of the file with its stacks."""
        self.phase, self.step, self.at = FIRST, 0, time.monotonic()
        self.beats = 0
        """All ranks go through the same phases: the one with the fewest is the one that the others wait for."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rtrain-watchdog", daemon=True)

    def beat(self, phase: str, step: int | None = None) -> None:
        """This rank goes on: `phase` begins, in `step` (steps done; none: as before). Costs a microsecond."""
        self.phase, self.at = phase, time.monotonic()
        self.beats += 1
        if step is not None:
            self.step = step

    def alive(self) -> None:
        """What this rank is at goes on: one of many parts, of a number that other ranks need not have."""
        self.at = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.at = time.monotonic()
        self._arm()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=1.0)
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.silent_s / 4)):
            limit_s = self._arm()
            if time.monotonic() - self.at > limit_s:
                end_process(
                    f"{self.who}: silent for {limit_s:g} s (faults.hang_s) in phase {self.phase!r} after step "
                    f"{self.step} (beat {self.beats}); this process ends. Start the run again by its name to resume",
                    code=EXIT_HUNG,
                    leave=lambda text: self.folder.child(STACKS).write(f"{self.name}.txt", text.encode()),
                )

    def _arm(self) -> float:
        """Have the process end without any thread's help, should none run any more; returns the seconds allowed now.

        Code in C that keeps Python's lock stops the watching thread too; what this arms needs no lock.
        """
        limit_s = self.silent_s * (SET_UP if self.phase == FIRST else 1)
        with suppress(Exception):  # no stderr
            faulthandler.dump_traceback_later(2 * limit_s + WRITE_S, exit=True, file=sys.__stderr__.fileno())  # type: ignore[union-attr]
        return limit_s


def end_process(why: str, *, code: int, leave: Callable[[str], object] | None = None) -> None:
    """Say why, with the stack of every thread, on stderr and to `leave`; then end the process, whatever it is at."""
    text = f"{why}\n\n{stacks()}"
    with suppress(Exception):  # a closed stderr must not keep the process alive
        print(text, file=sys.__stderr__, flush=True)
    if leave is not None:
        writing = threading.Thread(target=_quietly, args=(leave, text), daemon=True)
        writing.start()
        writing.join(WRITE_S)
        time.sleep(LINGER_S)
    os._exit(code)


def stacks() -> str:
    """Where every thread of this process is."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()


def silent_ranks(folder: Folder) -> list[str]:
    """What ranks that ended themselves left in a run's folder, the first line of each; who was waited for is first."""
    left = folder.child(STACKS)
    lines = [left.read(name).decode().splitlines()[0] for name in left.names()]
    return sorted(lines, key=lambda line: int(found[1]) if (found := BEAT.search(line)) else 0)


def _quietly(leave: Callable[[str], object], text: str) -> None:
    with suppress(Exception):
        leave(text)
