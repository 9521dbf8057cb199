"""Parquet files that rtrain makes itself: written whole or not at all, and known again by their version."""

import os
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
