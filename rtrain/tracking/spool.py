"""What a tracker has not taken yet, as lines of a file in the run's folder: a killed process loses none of it.

    spool/mlflow.jsonl      {"attempt": 1, "step": 40, "at": 1795434091000, "values": {"train/loss": 0.61}}

One thread adds lines, another one reads them in order and says how far it got. What is done with is dropped when all
of it is, so that the file is empty while a tracker keeps up, and gone when the run has ended and nothing is left.
"""

import fcntl
import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rtrain.errors import ClusterError, RtrainWarning
from rtrain.storage import Folder
from rtrain.tracking.workspace import Workspace

SPOOL = "spool"
PART = 2**20
"""Bytes that are read at once."""
Line = Mapping[str, Any]


class Spool:
    """The lines of one tracker.

    `keep`: which of those that an earlier attempt left are wanted still.
    `alone`: refuse, with ClusterError, a file that a run on this machine has open.
    """

    def __init__(self, folder: Folder, name: str, *, keep: Callable[[Line], bool], alone: bool = False):
        self.uri = f"{folder.uri}/{SPOOL}/{name}.jsonl"
        self.place = Workspace(folder.child(SPOOL), f"{name}.jsonl")
        self.place.fetch()
        self._lock = threading.Lock()
        path = self.place.path
        before = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if alone and path.exists() and not _is_free(path):
            raise ClusterError(f"{self.uri}: the run goes on, and sends it itself. Wait for its end, or stop it")
        kept = [line for line in map(_read, before) if line is not None and keep(line)]
        temporary = path.with_name(f".{path.name}.part")
        # A file of its own: an earlier attempt that still lives goes on with the one that nobody looks at any more.
        self._file = open(temporary, "w+b", buffering=0)  # noqa: SIM115 - closed by close()
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._held: list[bytes] = []
        self._safe = self._at = self._end = 0  # of bytes: what is done with, what was taken, all there are
        self._full = False
        for line in kept:
            self.add(line)
        os.fsync(self._file.fileno())
        os.replace(temporary, path)
        self._stored = self.place.scratch is not None and bool(before)

    def add(self, line: Line) -> None:
        """Append a line; where the disk is full it is held until there is room again."""
        with self._lock:
            self._held.append(json.dumps(line).encode() + b"\n")
            content = b"".join(self._held)
            try:
                os.lseek(self._file.fileno(), self._end, os.SEEK_SET)
                written = self._file.write(content)
                if written != len(content):
                    raise OSError(f"only {written} of {len(content)} bytes were written")
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), self._end)
                if not self._full:
                    warnings.warn(f"tracking: {self.uri} cannot be written ({error})", RtrainWarning, stacklevel=3)
                self._full = True
            else:
                self._held, self._full = [], False
                self._end += len(content)

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """The next lines, and how far they go; none where there are no more."""
        with self._lock:
            part = os.pread(self._file.fileno(), min(PART, self._end - self._at), self._at)
            whole = part[: part.rfind(b"\n") + 1]
            return [json.loads(line) for line in whole.splitlines()], self._at + len(whole)

    def done(self, until: int, *, forget: bool = True) -> None:
        """All up to there has been taken; `forget`: and is safe where it is now."""
        with self._lock:
            if not self._file.closed:
                self._at = until
                if forget:
                    self._forget()

    def forget(self) -> None:
        """What has been taken is safe by now."""
        with self._lock:
            self._forget()

    @property
    def is_empty(self) -> bool:
        """Whether all has been taken."""
        return self._at == self._end and not self._held

    @property
    def values(self) -> int:
        """Numbers that have not been taken."""
        with self._lock:
            rest = os.pread(self._file.fileno(), self._end - self._at, self._at)
        return sum(len(json.loads(line).get("values", ())) for line in (*rest.splitlines(), *self._held))

    def sync(self) -> None:
        """Bring it to where neither a killed process nor, in a remote folder, a lost machine takes it."""
        if self.place.scratch is None:
            os.fsync(self._file.fileno())
        elif self._end or self._stored:
            self._stored = self.place.copy()

    def close(self) -> None:
        """Leave what has not been taken, or no file."""
        with self._lock:
            if self._file.closed:
                return
            path, mine = self.place.path, os.fstat(self._file.fileno())
            left = os.pread(self._file.fileno(), self._end - self._safe, self._safe) + b"".join(self._held)
            self._file.close()
            if not path.exists() or os.stat(path).st_ino != mine.st_ino:
                return  # a newer attempt's by now
            if left:
                temporary = path.with_name(f".{path.name}.part")
                temporary.write_bytes(left)
                os.replace(temporary, path)
            else:
                path.unlink()
                with suppress(OSError):  # another tracker's lies there
                    path.parent.rmdir()
        if not left and self._stored:
            self.place.folder.discard(self.place.name)
        self.place.close()

    def _forget(self) -> None:
        self._safe = self._at
        if self._at == self._end and self._end:
            os.ftruncate(self._file.fileno(), 0)
            self._safe = self._at = self._end = 0


def _read(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # what a crash cut off
        return None
    return value if isinstance(value, dict) else None


def _is_free(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
