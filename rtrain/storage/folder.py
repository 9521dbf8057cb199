"""A folder under any path or fsspec URI, whose files a reader sees whole or not at all."""

import errno
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.callbacks

from rtrain.errors import CheckpointError, briefly, one_line
from rtrain.storage.patience import NoBucket, Patience, refused_by_storage

T = TypeVar("T")
_CREATES_ONCE: dict[object, bool] = {}
"""What was found of each storage: a local disk's device number, or protocols and bucket."""


class Unable(Exception):
    """A storage that has no conditional create."""


def sha256_of(path: str | Path) -> str:
    """Hex digest of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Folder:
    """A folder on any fsspec file system, with writes that are whole or absent, and tried again with `patience`."""

    def __init__(self, uri: str, patience: Patience | None = None):
        self.uri = uri.rstrip("/")
        self.patience = patience or Patience()
        self.fs, self.path = fsspec.core.url_to_fs(self.uri)
        self.protocols = set(self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.is_local = "file" in self.protocols

    def child(self, name: str) -> "Folder":
        """A folder inside this one."""
        return Folder(f"{self.uri}/{name}", self.patience)

    def _patiently(self, work: Callable[[], T], what: str) -> T:
        return self.patience.run(work, what=f"{self.uri}: {what}", remote=not self.is_local)

    def _each_part(self) -> Any:
        """What fsspec calls for each part of a file that it sends or fetches."""
        return fsspec.callbacks.Callback(hooks={"went_on": lambda *_, **__: self.patience.went_on()})

    def sizes(self) -> dict[str, int]:
        """Names directly inside, sorted, with the bytes of files; empty when the folder is not there."""

        def found() -> dict[str, int]:
            self.fs.invalidate_cache()
            try:
                return {Path(e["name"]).name: int(e.get("size") or 0) for e in self.fs.ls(self.path, detail=True)}
            except FileNotFoundError as error:
                refuse_no_bucket(error)
                return {}

        return dict(sorted(self._patiently(found, "list").items()))

    def names(self) -> list[str]:
        """Names directly inside, sorted; empty when the folder is not there."""

        def found() -> list[str]:
            self.fs.invalidate_cache()
            try:
                return [Path(p).name for p in self.fs.ls(self.path, detail=False)]
            except FileNotFoundError as error:
                refuse_no_bucket(error)
                return []

        return sorted(self._patiently(found, "list"))

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is inside."""
        return name in self.names()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._patiently(lambda: self.fs.size(f"{self.path}/{name}"), f"size of {name}"))

    def read(self, name: str) -> bytes:
        """A file's bytes."""

        def found() -> bytes:
            self.fs.invalidate_cache()
            content: bytes = self.fs.cat_file(f"{self.path}/{name}")
            return content

        return self._patiently(found, f"read {name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or none of it."""
        if not self.is_local:
            self._patiently(lambda: self.fs.pipe_file(f"{self.path}/{name}", data), f"write {name}")
        else:
            self._patiently(lambda: self._write_local(name, data, os.replace), f"write {name}")

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of that name; whether it is now this one.

        One operation of the storage where it has such a one (`creates_once`), so that of two writers
        exactly one gets true. Elsewhere it is looked for, written and read back, which two writers
        within the same instant can both pass.
        """
        if self.creates_once():
            return self._patiently(lambda: self._create(name, data), f"create {name}")

        def attempt() -> bool:
            if not self.fs.exists(f"{self.path}/{name}"):
                self.write(name, data)
            return self.read(name) == data

        return self._patiently(attempt, f"create {name}")

    def creates_once(self) -> bool:
        """Whether the storage can create a file on the condition that there is none of its name.

        Tried out once per process and storage: of two files of one name the second must be refused.
        """
        if self.is_local:
            make_folder(self.path)
        storage = os.stat(self.path).st_dev if self.is_local else (*sorted(self.protocols), self.path.split("/")[0])
        if storage not in _CREATES_ONCE:
            name = f".probe-{uuid.uuid4().hex}"
            try:
                first, second = (
                    self._patiently(lambda c=content: self._create(name, c), "try a conditional create")  # type: ignore[misc]
                    for content in (b"first", b"second")
                )
                _CREATES_ONCE[storage] = first and not second
            except Exception as error:
                if not _is_unable(error):
                    raise
                _CREATES_ONCE[storage] = False
            finally:
                self.discard(name)
        return _CREATES_ONCE[storage]

    def _create(self, name: str, data: bytes) -> bool:
        try:
            if self.is_local:
                self._write_local(name, data, os.link)
            elif "mode" in _parameters(self.fs):
                self.fs.pipe_file(f"{self.path}/{name}", data, mode="create")
            else:
                raise NotImplementedError(f"{type(self.fs).__name__} knows no conditional create")
        except Exception as error:
            if _status(error) == 501:
                raise Unable(one_line(error)) from error  # no failure that passes
            if not _is_conflict(error):
                raise
            self.fs.invalidate_cache()  # else s3fs believes the listing that it made before
            try:
                # A try whose answer was lost may have been the one that wrote it.
                return bool(self.fs.cat_file(f"{self.path}/{name}") == data)
            except FileNotFoundError:
                # S3 answers so while another request for the same key is under way (409): ask again.
                raise TimeoutError(f"{name} is neither there nor may it be created ({error})") from error
        return True

    def _write_local(self, name: str, data: bytes, place: Callable[[str, str], None]) -> None:
        make_folder(self.path)
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            place(temporary, f"{self.path}/{name}")
        finally:
            Path(temporary).unlink(missing_ok=True)
        _sync_folder(self.path)

    def write_json(self, name: str, value: Any) -> None:
        """`value` as readable JSON."""
        self.write(name, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """The JSON value in a file."""
        return json.loads(self.read(name))

    def adopt(self, source: Path, name: str) -> None:
        """Move a finished local file, synced to disk if that matters, into the folder."""
        if self.is_local:
            make_folder(self.path)
            if os.stat(source).st_dev != os.stat(self.path).st_dev:
                beside = Path(self.path) / f".{name}"
                try:
                    shutil.copy(source, beside)
                    with beside.open("rb") as file:
                        os.fsync(file.fileno())
                    os.replace(beside, f"{self.path}/{name}")
                finally:
                    beside.unlink(missing_ok=True)  # on a disk that is full
                source.unlink()
            else:
                os.replace(source, f"{self.path}/{name}")
            _sync_folder(self.path)
        else:
            self._patiently(
                lambda: self.fs.put_file(str(source), f"{self.path}/{name}", callback=self._each_part()),
                f"write {name}",
            )
            source.unlink()

    def fetch(self, name: str, into: Path) -> Path:
        """A local path of a file: the file itself, or a copy in `into`."""
        if self.is_local:
            return Path(self.path) / name
        target = into / name
        if not target.exists():
            beside = into / f".{name}"
            self._patiently(
                lambda: self.fs.get_file(f"{self.path}/{name}", str(beside), callback=self._each_part()),
                f"read {name}",
            )
            beside.replace(target)
        return target

    def discard(self, name: str) -> None:
        """Delete a file; nothing happens when it is not there."""

        def gone() -> None:
            if self.exists(name):
                with suppress(FileNotFoundError):  # another try of ours, or someone else
                    self.fs.rm_file(f"{self.path}/{name}")

        self._patiently(gone, f"delete {name}")

    def delete(self, names: Collection[str]) -> None:
        """Delete these files (locally folders too), and the folder where nothing else is in it."""

        def gone() -> None:
            there = [f"{self.path}/{name}" for name in self.names() if name in names]
            if there:
                with suppress(FileNotFoundError):  # another try of ours, or someone else
                    self.fs.rm(there, recursive=self.is_local)

        self._patiently(gone, "delete")
        with suppress(OSError, NotImplementedError):  # not empty; object storage has no folders to delete
            self.fs.rmdir(self.path)

    def remove(self) -> None:
        """Delete the folder and all in it; nothing happens when it is not there."""

        def gone() -> None:
            if self.fs.exists(self.path):
                with suppress(FileNotFoundError):
                    self.fs.rm(self.path, recursive=True)

        self._patiently(gone, "delete")

    def move(self, to: "Folder", *, last: str = "") -> None:
        """Move the folder, with all in it, to where there is none.

        On a disk it is renamed. Other storages have no such operation: there each file is copied, `last` when all
        others are, and then the folder is deleted; after a kill the same call does it.
        """
        if self.is_local:
            self._patiently(lambda: self.fs.mv(self.path, to.path, recursive=True), "move")
            return
        # Not fsspec's own `mv`, which takes for files what is only the beginning of their names.
        self.fs.invalidate_cache()
        files = self._patiently(lambda: self.fs.find(self.path), "list")
        names = [str(file).removeprefix(f"{self.path}/") for file in files]

        def copy(name: str) -> None:
            self._patiently(lambda: self.fs.cp_file(f"{self.path}/{name}", f"{to.path}/{name}"), f"copy {name}")

        with ThreadPoolExecutor(max_workers=16) as pool:  # a round trip each
            list(pool.map(copy, [name for name in names if name != last]))
        if last in names:
            copy(last)
        self.remove()


def _parameters(fs: Any) -> set[str]:
    return set(inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters)


def _is_conflict(error: Exception) -> bool:
    """Whether a conditional create says that there is such a file already."""
    return isinstance(error, FileExistsError) or _status(error) in (409, 412) or "recondition" in str(error)


def _is_unable(error: Exception) -> bool:
    """Whether it says that there is no such operation: some mounts have no link(2), some servers answer 501."""
    if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP):
        return True
    return isinstance(error, Unable | NotImplementedError)


def _status(error: Exception) -> int | None:
    """HTTP status of an answer of S3."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None


def refuse_no_bucket(error: Exception) -> None:
    """Raises NoBucket where it is the bucket that is not there, as S3 says."""
    answer = getattr(error.__cause__, "response", None)
    if isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "NoSuchBucket":
        raise NoBucket(f"{error}. Check its name") from None


def make_folder(path: str) -> None:
    """Make a local folder and those above it that are not there, each name durable: see `_sync_folder`."""
    above = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(path):
        make_folder(above)
        with suppress(FileExistsError):  # another rank was quicker; it syncs too, but perhaps later than this one
            os.mkdir(path)
        _sync_folder(above)


def _sync_folder(path: str) -> None:
    """Make the names in a local folder durable: without it a power cut may take a file that was synced."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(
    uri: str, *, key: str = "storage", mend: str = "Set storage to a folder or URI that you may write to"
) -> None:
    """Prove that the folder can be written, by a file that is removed again.

    Args:
        uri: of the folder.
        key: what named it, for the message.
        mend: what to do, for the message.

    Raises:
        CheckpointError: it cannot, with the system's reason.
    """
    try:
        folder = Folder(uri, Patience(budget_s=5.0))  # a wrong address is to be told now
        if folder.is_local:
            make_folder(folder.path)
        probe = f".probe-{os.getpid()}"
        folder.write(probe, b"rtrain")
        folder.fs.rm_file(f"{folder.path}/{probe}")
    except Exception as error:  # each storage has its own: botocore's NoCredentialsError is no OSError
        why = refused_by_storage(error) or briefly(error)
        raise CheckpointError(f"{key}: {uri!r} cannot be written ({why}). {mend}") from error
