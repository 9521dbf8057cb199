"""Where the stages leave their tables: a folder anywhere, whose files are whole or absent."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from rtrain.data.cached import ROW_GROUP_ROWS
from rtrain.data.duck import literal, opened
from rtrain.data.prepare.config import Prepare
from rtrain.storage import Folder
from rtrain.storage.folder import sha256_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection


MOST_ROWS = 1 << 40
"""More than a file or a slice has: a row's number is MOST_ROWS times its file's or slice's, and its place in it."""


def partial(config: Prepare) -> str:
    """The folder of what is under way."""
    return f"{config.out.rstrip('/')}.partial"


def file_of(column: str) -> str:
    """A column's name as a file's or a folder's."""
    return quote(column, safe=" ")


@contextmanager
def database(config: Prepare, filesystem: Any = None) -> Iterator["Connection"]:
    """DuckDB for one task, by one thread and in order: Ray runs the tasks side by side."""
    folder = Folder(config.out)
    fs = filesystem if filesystem is not None or folder.is_local else folder.fs
    with opened(
        config.source, fs, config.memory_gb, asker="data prepare", extra="prepare", in_order=True
    ) as connection:
        yield connection


def table(config: Prepare, *names: str) -> str:
    """SQL of the rows of Parquet files of the folder."""
    folder = Folder(partial(config))
    paths = (f"{folder.path}/{name}" for name in names)
    listed = ", ".join(literal(path if folder.is_local else str(folder.fs.unstrip_protocol(path))) for path in paths)
    return f"read_parquet([{listed}], hive_partitioning=false)"


def fetch(connection: "Connection", sql: str) -> pa.Table:
    """The rows of a query, in its order."""
    return connection.execute(sql).to_arrow_table()


def write(config: Prepare, name: str, rows: pa.Table, metadata: dict[str, str] | None = None) -> str:
    """Write a table as a Parquet file of the folder, whole or not at all; its sha256."""
    stage, _, file = name.rpartition("/")
    rows = rows.replace_schema_metadata(metadata)
    with tempfile.TemporaryDirectory(prefix="rtrain-prepare-") as scratch:
        made = Path(scratch) / "table.parquet"
        pq.write_table(rows, made, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
        digest = sha256_of(made)
        Folder(f"{partial(config)}/{stage}").adopt(made, file)
    return digest
