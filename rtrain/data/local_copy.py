"""Files of a storage that is not local, copied once into this machine's cache: what is mapped has to be on its disk."""

import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rtrain.data.cached import locked
from rtrain.data.sources import default_cache
from rtrain.errors import DataError, briefly
from rtrain.storage import Folder, StorageDown, refused_by_storage, sha256_of

SAY_S = 10.0


def local_copy(uri: str, head: str, named: Callable[[bytes], Mapping[str, str | None]]) -> Path:
    """The folder in the cache that has the files of one elsewhere; other content gets another folder.

    The first process of a machine copies them, and the others wait for it; one that is killed is gone on from. What is
    returned is whole.

    Args:
        uri: of the folder, on another storage than a disk.
        head: the file that says what belongs to it, which is read at each call, and copied last.
        named: given its bytes, the others' names, each with its sha256, or none where it says none.

    Raises:
        DataError: there is no such head, a file is not what the head says, or the cache cannot be written.
        StorageDown: the storage was away for longer than it is waited for.
    """
    folder = Folder(uri)
    try:
        content = folder.read(head)
        files = named(content)
        kept = default_cache().expanduser().absolute() / f"copy-{hashlib.sha256(content).hexdigest()[:16]}"
        if not kept.is_dir():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with locked(kept.parent / f".{kept.name}.lock") as alone:
                if not kept.is_dir():
                    beside = kept.with_name(f".{kept.name}.{'' if alone else os.getpid()}partial")
                    _copy(folder, {**files, head: None}, beside)
                    beside.rename(kept)
    except (DataError, StorageDown):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{uri}: there is no {head}, or what it names ({briefly(error)})") from None
    except Exception as error:
        if refused_by_storage(error) is None:
            raise
        mend = "Free it, or set" if isinstance(error, OSError) and error.errno == errno.ENOSPC else "Or set"
        raise DataError(f"{uri}: it cannot be copied ({briefly(error)}). {mend} RTRAIN_CACHE to another disk") from None
    return kept


def _copy(folder: Folder, files: Mapping[str, str | None], into: Path) -> None:
    sizes = folder.sizes()
    for name in files:
        if name not in sizes:  # also one that would lie elsewhere, as ../x
            raise DataError(f"{folder.uri}: it names {name!r}, which is not in it. Copy it there, or make it again")
    size, began, done, said = sum(sizes[name] for name in files), time.monotonic(), 0, 0.0
    _say(f"copying {folder.uri} ({size / 1e6:,.1f} MB in {len(files)} files) to {into.parent}")
    into.mkdir(exist_ok=True)
    for name, digest in files.items():
        found = folder.fetch(name, into)
        if digest and sha256_of(found) != digest:
            (into / name).unlink()
            raise DataError(f"{folder.uri}/{name}: its sha256 is not what was written down. Copy or make it again")
        done += sizes[name]
        if time.monotonic() - began > said + SAY_S:
            said = time.monotonic() - began
            _say(f"copied {done / size:.0%} of {folder.uri}, {done / said / 1e6:.1f} MB/s")


def _say(text: str) -> None:
    print(f"rtrain: {text}", file=sys.stderr, flush=True)
