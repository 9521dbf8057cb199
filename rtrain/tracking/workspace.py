"""A local place for a tracker's files, copied into the run's folder when that folder is remote.

TensorBoard can write to fsspec paths itself, but by appending, which object storage answers by
writing the whole file again at each flush, in the thread that trains; wandb, SQLite and a file of
lines cannot do it at all. So all of them write locally and are copied now and then, and at the end.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

from rtrain.errors import RtrainWarning
from rtrain.scratch import Scratch
from rtrain.storage import Folder

EVERY_S = 60.0


class Workspace:
    """The file or folder `name` of the run's folder, as a local path to write to."""

    def __init__(self, folder: Folder, name: str, *, every_s: float = EVERY_S):
        self.folder, self.name, self.every_s = folder, name, every_s
        self.scratch = None if folder.is_local else Scratch(name)
        self.path = (self.scratch.path if self.scratch else Path(folder.path)) / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._copied: dict[Path, tuple[int, int]] = {}
        self._last = time.monotonic()

    def fetch(self) -> None:
        """Bring the file that an earlier attempt left in a remote folder."""
        if self.scratch and self.folder.exists(self.name):
            self.folder.fetch(self.name, self.scratch.path)

    def copy_if_due(self, flush: Callable[[], None]) -> bool:
        """Copy what changed, at most every `every_s`; `flush` brings it to the local disk first. Whether it did."""
        if not self.scratch or time.monotonic() - self._last < self.every_s:
            return False
        flush()
        return self.copy()

    def copy(self) -> bool:
        """Copy what changed, if the folder is remote; whether it is there now."""
        if self.scratch:
            try:
                self._copy()
            except Exception:  # any kind of storage may be behind it; the next copy carries this one's files too
                self._last = time.monotonic()
                return False
        return True

    def close(self) -> bool:
        """Copy the rest and remove the scratch folder; where that fails the files stay, and a warning says where."""
        if not self.scratch:
            return True
        try:
            self._copy()
        except Exception as error:  # the training is done and its checkpoints are safe: not worth failing for
            self.path = self.scratch.keep() / self.name
            text = f"tracking: {self.path} could not be copied to {self.folder.uri} ({error}); it is kept there"
            warnings.warn(text, RtrainWarning, stacklevel=2)
            return False
        self.scratch.remove()
        return True

    def _copy(self) -> None:
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        for file in files:
            if file.is_symlink() or not file.is_file():
                continue
            stat = file.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._copied.get(file) == state:
                continue
            inside = file.relative_to(self.path.parent).as_posix()
            self.folder.fs.put_file(str(file), f"{self.folder.path}/{inside}")
            self._copied[file] = state
        self._last = time.monotonic()
