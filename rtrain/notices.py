"""What libraries warn of and a person can do nothing about: in a file of the run, so that its terminal is the run's.

Where a warning comes from decides: those of a library's files, and of rtrain's where a library speaks through them, are
kept from the terminal; those of the user's own files, rtrain's own and errors that a library logs stay there.
"""

import logging
import os
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rtrain.errors import RtrainWarning

FOLDER = "notices"
"""In the run's folder: `driver.log` and a `rank-00000.log` of each rank."""
SHOW = "RTRAIN_NOTICES"
"""Environment variable: `1` leaves all on the terminal, as the libraries do it."""
MOST = 500
"""Different ones that a file gets of one process."""
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OWN = tuple(f"{path}{os.sep}" for path in (sysconfig.get_path("stdlib"), str(Path(__file__).parent)))
_TYPED = ("<stdin>", "<string>", "<ipython")
"""How the file is called of what a user typed; other names of this kind are of code that a library made."""


class _Kept:
    """Notices of a part of the program, each different one once: its text -> when it came first."""

    def __init__(self, folder: str):
        self.folder = folder
        self.found: dict[str, str] = {}

    def add(self, path: str, line: int, kind: str, text: str) -> None:
        """It is known again by where it is from and what it says."""
        for mark in PACKAGES:
            path = path.rpartition(mark)[2]
        notice = f"{path}:{line} {kind}: {' '.join(text.split())}"
        if len(self.found) < MOST:
            self.found.setdefault(notice, datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, name: str) -> None:
        """Behind what the file has of earlier starts, less what it tells already; nothing of a run that never began."""
        if not self.found:
            return
        from rtrain.storage import Folder  # only now: `rtrain --help` does without
        from rtrain.tracking import mask_text

        run = Folder(self.folder)
        if not run.exists("run.json"):
            return
        folder, found = run.child(FOLDER), {mask_text(text): when for text, when in self.found.items()}
        before = folder.read(name).decode() if folder.exists(name) else ""
        told = {line.partition(" ")[2] for line in before.splitlines()}
        after = "".join(f"{when} {text}\n" for text, when in found.items() if text not in told)
        if after:
            folder.write(name, (before + after).encode())


_INNER: list[_Kept] = []
"""The parts that are under way, the innermost last."""
_BEFORE: dict[str, Any] = {}
"""What is called instead while any is."""
_CHANGING = threading.Lock()


@contextmanager
def aside(folder: str = "", name: str = "") -> Iterator[None]:
    """Keep notices from the terminal while this lasts; at its end they are in file `name`.log of `folder`'s notices.

    Without a folder they go to the part around this one that has one, else nowhere.
    """
    if os.environ.get(SHOW) == "1":
        yield
        return
    kept = _Kept(folder)
    with _CHANGING:
        if not _INNER:
            _BEFORE.update(show=warnings.showwarning, emit=logging.StreamHandler.emit)
            warnings.showwarning = _show
            _set_emit(_emit)  # of the class, since libraries add handlers when they are imported
        _INNER.append(kept)
    try:
        yield
    finally:
        with _CHANGING:
            _INNER.remove(kept)
            if not _INNER:
                if warnings.showwarning is _show:
                    warnings.showwarning = _BEFORE["show"]
                _set_emit(_BEFORE["emit"])
        if folder:
            with suppress(Exception):  # storage that is full or gone must not hide how the run ended
                kept.write(f"{name}.log")


def _set_emit(emit: Any) -> None:
    logging.StreamHandler.emit = emit  # type: ignore[method-assign]


def _keep(path: str, line: int, kind: str, text: str) -> None:
    kept = next((part for part in reversed(_INNER) if part.folder), None)
    if kept:
        kept.add(path, line, kind, text)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """For `warnings.showwarning`. All are kept: the terminal of a worker of Ray goes with it."""
    _keep(filename, lineno, category.__name__, str(message))
    if file is not None or issubclass(category, RtrainWarning) or not of_library(filename):
        _BEFORE["show"](message, category, filename, lineno, file, line)


def _emit(handler: Any, record: logging.LogRecord) -> None:
    """For `logging.StreamHandler.emit`. One of the root logger may be a library's too: fbgemm_gpu adds one."""
    stream = handler.stream
    terminal = stream in (sys.stdout, sys.stderr) or getattr(stream, "name", "") in ("<stdout>", "<stderr>")
    if terminal and record.levelno < logging.ERROR and of_library(record.pathname):
        if record.levelno >= logging.WARNING:  # a worker of Ray would print all that libraries tell of their doings
            _keep(record.pathname, record.lineno, record.levelname, record.getMessage())
    else:
        _BEFORE["emit"](handler, record)


def of_library(path: str) -> bool:
    """Whether a file of this name is a library's or rtrain's, and not the user's."""
    if path.startswith("<"):
        return not path.startswith(_TYPED)
    return path == "sys" or path.startswith(_OWN) or any(mark in path for mark in PACKAGES)
