"""Folders in the temporary folder for files that no process outlives: what a killed one left, the next one removes.

A process that is killed runs no clean-up. So each folder is locked by the process that uses it, the
system drops the lock however that process ends, and whoever gets the lock of a folder may remove it.
On a cluster each node's processes look after that node's own.
"""

import fcntl
import os
import re
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

FOLDER = re.compile(r"rtrain-scratch-[\w.]+-\w{8}")
_SWEPT: set[str] = set()
"""Temporary folders that this process has looked through."""


class Scratch:
    """A new folder of this process's own; a context manager that gives its path, or removed with the object."""

    def __init__(self, what: str):
        base = tempfile.gettempdir()
        if base not in _SWEPT:
            _SWEPT.add(base)
            sweep()
        self.path, lock = _made(f"rtrain-scratch-{what}-", base)
        self._gone = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove it, with what is in it; a second call does nothing."""
        self._gone()

    def keep(self) -> Path:
        """Leave it for the user, under a name that no process removes; its new path."""
        kept = self.path.with_name(self.path.name.replace("rtrain-scratch-", "rtrain-kept-", 1))
        self.path.rename(kept)
        self.path = kept
        self._gone()  # of the old name nothing is left; the lock is dropped
        return kept


def sweep() -> None:
    """Remove the folders whose process has ended."""
    for folder in Path(tempfile.gettempdir()).iterdir():
        if not FOLDER.fullmatch(folder.name):
            continue
        with suppress(OSError):  # in use, or another process sweeps too
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _made(prefix: str, base: str) -> tuple[Path, int]:
    """A folder and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        handle = -1
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(BlockingIOError):  # a sweep has it, and takes it away
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return path, handle
        except FileNotFoundError:
            pass  # a sweep came between its making and its lock
        except OSError:
            if handle >= 0:
                return path, handle  # this file system has no locks: nobody sweeps here
            raise
        os.close(handle) if handle >= 0 else None


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
