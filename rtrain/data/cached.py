"""Parquet files that rtrain makes itself: written whole or not at all, and known again by their version."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

VERSION_KEY = b"rtrain.conversion"
ROW_GROUP_ROWS = 65_536


def write(table: pa.Table, out: Path, version: int) -> None:
    """All of the file or nothing: written beside its place, flushed to the disk, then renamed."""
    table = table.replace_schema_metadata({VERSION_KEY: str(version)})
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            pq.write_table(table, file, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def is_current(parquet: Path, version: int) -> bool:
    """Whether the file is whole (page checksums verified) and of this version."""
    try:
        with pq.ParquetFile(parquet, page_checksum_verification=True) as file:
            stored = file.schema_arrow.metadata or {}
            return stored.get(VERSION_KEY) == str(version).encode() and file.read().num_rows > 0
    except (OSError, pa.ArrowException):
        return False


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a file lock; false where the file system has none: then work may be done twice, and is renamed whole."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            locked = False
        yield locked
