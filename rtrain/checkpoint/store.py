"""Where checkpoints live: one folder a step under any fsspec URI, committed by a marker written last.

    {run}/checkpoints/step-00000200/rank-00000.safetensors ...   every rank's share
                                    manifest.json                what is in them
                                    COMMITTED                    sha256 of the manifest; written last

A folder without its marker does not exist for a reader, whatever happened to its writer.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from rtrain.errors import CheckpointError

STEP = re.compile(r"step-(\d{8})")
SHARD = re.compile(r"rank-\d{5}\.safetensors")
MANIFEST = "manifest.json"
MARKER = "COMMITTED"


def sha256_of(path: str | Path) -> str:
    """Hex digest of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Folder:
    """A folder on any fsspec file system, with writes that are whole or absent."""

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        self.fs, self.path = fsspec.core.url_to_fs(self.uri)
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def child(self, name: str) -> "Folder":
        """A folder inside this one."""
        return Folder(f"{self.uri}/{name}")

    def names(self) -> list[str]:
        """Names directly inside, sorted; empty when the folder is not there."""
        self.fs.invalidate_cache()
        try:
            return sorted(Path(p).name for p in self.fs.ls(self.path, detail=False))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is inside."""
        return name in self.names()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self.fs.size(f"{self.path}/{name}"))

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        data: bytes = self.fs.cat_file(f"{self.path}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or none of it."""
        if not self.is_local:
            self.fs.pipe_file(f"{self.path}/{name}", data)
            return
        os.makedirs(self.path, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, f"{self.path}/{name}")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def write_json(self, name: str, value: Any) -> None:
        """`value` as readable JSON."""
        self.write(name, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """The JSON value in a file."""
        return json.loads(self.read(name))

    def adopt(self, source: Path, name: str) -> None:
        """Move a finished local file into the folder."""
        if self.is_local:
            os.makedirs(self.path, exist_ok=True)
            with open(source, "rb") as file:
                os.fsync(file.fileno())
            shutil.move(source, f"{self.path}/.{name}")
            os.replace(f"{self.path}/.{name}", f"{self.path}/{name}")
        else:
            self.fs.put_file(str(source), f"{self.path}/{name}")
            source.unlink()

    def fetch(self, name: str, into: Path) -> Path:
        """A local path of a file: the file itself, or a copy in `into`."""
        if self.is_local:
            return Path(self.path) / name
        target = into / name
        if not target.exists():
            self.fs.get_file(f"{self.path}/{name}", str(target))
        return target

    def discard(self, name: str) -> None:
        """Delete a file; nothing happens when it is not there."""
        if self.exists(name):
            self.fs.rm_file(f"{self.path}/{name}")

    def remove(self) -> None:
        """Delete the folder and all in it; nothing happens when it is not there."""
        if self.fs.exists(self.path):
            self.fs.rm(self.path, recursive=True)


def check_writable(uri: str) -> None:
    """Prove that the folder can be written, by a file that is removed again.

    Raises:
        CheckpointError: it cannot, with the system's reason.
    """
    try:
        folder = Folder(uri)
        if folder.is_local:
            os.makedirs(folder.path, exist_ok=True)
        probe = f".probe-{os.getpid()}"
        folder.write(probe, b"rtrain")
        folder.fs.rm_file(f"{folder.path}/{probe}")
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"storage: {uri!r} cannot be written ({type(error).__name__}: {error}). "
            "Set storage to a folder or URI that you may write to"
        ) from error


class CheckpointFolders:
    """All checkpoints of one run."""

    def __init__(self, run_uri: str):
        self.root = Folder(f"{run_uri.rstrip('/')}/checkpoints")

    def of(self, step: int) -> Folder:
        """The folder of one step."""
        return self.root.child(f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Every step with a folder, committed or not, ascending."""
        return [int(m[1]) for m in map(STEP.fullmatch, self.root.names()) if m]

    def committed(self) -> list[int]:
        """Steps whose marker is there, ascending."""
        return [s for s in self.steps() if self.of(s).exists(MARKER)]

    def prune(self, keep: int, spare: set[int]) -> list[int]:
        """Delete all but the newest `keep` committed steps and those in `spare`; half-written ones too.

        The marker goes first, so that a reader never sees a committed folder with files missing.
        """
        kept = set(self.committed()[-keep:]) | spare
        gone = [s for s in self.steps() if s not in kept]
        for step in gone:
            folder = self.of(step)
            folder.discard(MARKER)
            folder.remove()
        return gone
