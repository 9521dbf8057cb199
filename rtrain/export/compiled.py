"""A ranking model compiled for the machine that answers, by torch's AOTInductor: C++, made a library by g++.

    ~/.cache/rtrain/programs/KEY-DIGEST.pt2    of one export, torch and processor; XDG_CACHE_HOME moves the cache

A library is code and belongs to one kind of processor, so that it is no part of an export: whoever loads one compiles
it, once a machine, and keeps it where only the user writes. `rtrain.export.compiler` is the process that does it.
"""

import fcntl
import json
import os
import platform
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtrain.process import apart_from_here
from rtrain.scratch import Scratch
from rtrain.storage import sha256_of
from rtrain.version import VERSION

DEADLINE_S = 900.0
"""Of compiling, which takes some 20 s of one core; and of waiting for another process that compiles the same."""
KEPT = 32
"""Libraries in the cache: of more the one that was used longest ago goes."""


def lacks_compiler() -> str:
    """What is missing to compile; empty: nothing."""
    name = os.environ.get("CXX", "g++")
    return "" if shutil.which(name) else f"there is no C++ compiler ({name!r}, by CXX): apt-get install g++"


def key_of(head: Mapping[str, Any], device: str) -> str:
    """Of all that the library of an export depends on: its model and files, torch, rtrain, and the processor."""
    parts = {name: head.get(name) for name in ("model", "schema", "files")}
    files = {name: digest for name, digest in head["files"].items() if name.startswith("model-")}
    on = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    told = [parts | {"files": files}, torch.__version__, VERSION, device.partition(":")[0], on]
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """Its kind, and all that it can do: a library uses what it finds."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.machine())
    return f"{platform.machine()} {platform.processor()}"


def compiled(uri: str, head: Mapping[str, Any], modules: Sequence[str], device: str) -> tuple[Path | None, str]:
    """The library of an export, compiled if it is not in the cache; or, second, why there is none.

    `modules`: that the model's classes are in, which the process that compiles imports first.
    """
    key = key_of(head, device)
    try:
        folder = _cache()
        kept = _kept(folder, key)
        if kept is None:
            with _alone(folder / "lock"):
                kept = _kept(folder, key)  # another process may have been the first
                if kept is None and (why := lacks_compiler() or _compile(uri, key, modules, device, folder)):
                    return None, why
                kept = kept or _kept(folder, key)
                _clear(folder)
        if kept is None:
            return None, "what was compiled is gone from the cache already"
        with suppress(OSError):  # of a folder that is only read, as of an image
            os.utime(kept)
    except OSError as error:
        return None, f"the cache cannot be used ({error}). Let XDG_CACHE_HOME name a folder that is yours"
    return kept, ""


def _kept(folder: Path, key: str) -> Path | None:
    """The library of a key that is whole; one that is not, as of a disk that was full, is removed."""
    for path in folder.glob(f"{key}-*.pt2"):
        if path.stem == f"{key}-{sha256_of(path)}":
            return path
        path.unlink(missing_ok=True)
    return None


def _cache() -> Path:
    """The folder, which nobody else writes but root, below others that not everybody may take away.

    Raises:
        OSError: it cannot be made, or others write there.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "rtrain" / "programs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is another's, or others may write there")
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(f"{parent}, in which it is, may be written by everybody")
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock however that one ends.

    Raises:
        TimeoutError: another has it for longer than `DEADLINE_S`.
    """
    until = time.monotonic() + DEADLINE_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"{path} was locked for {DEADLINE_S:g} s") from None
                time.sleep(0.1)
        yield


def _compile(uri: str, key: str, modules: Sequence[str], device: str, folder: Path) -> str:
    """Put the library into a folder, at once and whole; returns why it could not be."""
    with Scratch("compiled") as scratch:
        made = scratch / "program.pt2"
        asked = {"export": uri, "key": key, "modules": list(modules), "device": device, "to": str(made)}
        there = {"TORCHINDUCTOR_CACHE_DIR": str(scratch), "TMPDIR": str(scratch)}
        told, error = apart_from_here("rtrain.export.compiler", asked, DEADLINE_S, environment=there)
        if why := error or str(told["why"]):
            return why
        beside = folder / f"{key}.{os.getpid()}"
        try:
            shutil.copyfile(made, beside)
            os.replace(beside, folder / f"{key}-{sha256_of(made)}.pt2")
        finally:
            beside.unlink(missing_ok=True)
    return ""


def _clear(folder: Path) -> None:
    for path in sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """Where torch unpacks what it loads: mapped, it needs no file, and a process that is killed leaves none."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


class Compiled:
    """A library that is loaded: what is computed between products of matrices on one thread."""

    def __init__(self, path: Path, takes: Sequence[str]):
        """Load one of the cache; `takes`: as `rtrain.export.program.Whole`'s."""
        with Scratch("library") as scratch, _temporary(scratch):
            self._run = torch._inductor.aoti_load_package(str(path))
        self._takes = tuple(takes)
        self._tables: dict[str, Tensor] = {}

    def keep(self, tables: Mapping[str, Tensor]) -> None:
        """Tables that go in at every call, as they lie."""
        self._tables = dict(tables)

    def __call__(self, given: Mapping[str, Tensor]) -> Tensor:
        """Outputs as the model's, float32 [B] or [B, L], of all else that it takes of some rows."""
        named = {**given, **self._tables}
        outputs: Tensor = self._run(*(named[name].contiguous() for name in self._takes))
        return outputs
