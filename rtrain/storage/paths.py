"""Where a path lies, for every process alike."""

import os
from pathlib import Path

from fsspec.core import split_protocol

LOCAL = (None, "file", "local")
"""What begins a path, or a URI, of this machine's disks."""


def located(uri: str) -> str:
    """A local path made absolute, so that it means the same in every process; empty, and a URI, as it is."""
    return os.path.abspath(uri) if uri and "://" not in uri else uri


def path_on_disk(uri: str) -> Path | None:
    """The path that a path or a `file://` URI means; none: it lies on another storage."""
    protocol, path = split_protocol(uri)
    return Path(path) if protocol in LOCAL and "::" not in uri else None
