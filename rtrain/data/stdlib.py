"""Real text that every machine has: the source of Python's own standard library, byte by byte."""

import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtrain.data.cached import locked
from rtrain.data.sources import default_cache

NAME = "stdlib"
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "__pycache__"}
END = 0
"""The byte between two files."""

Write = Callable[[Iterator[NDArray[np.integer]], Path], None]


def shards(write: Write) -> Path:
    """The folder of its shards in the cache, made at the first call; another Python version is another text."""
    cache = default_cache()
    folder = cache / f"stdlib-{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if not (folder / "tokens.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / ".stdlib.lock"):
            if not (folder / "tokens.json").is_file():
                with tempfile.TemporaryDirectory(prefix=".stdlib-", dir=cache) as scratch:
                    made = Path(scratch) / "shards"
                    write(_documents(Path(sysconfig.get_path("stdlib"))), made)
                    made.rename(folder)
    return folder


def _documents(root: Path) -> Iterator[NDArray[np.integer]]:
    for path in sorted(root.rglob("*.py")):
        if not LEFT_OUT & set(path.relative_to(root).parts):
            yield np.frombuffer(path.read_bytes() + bytes([END]), np.uint8)
