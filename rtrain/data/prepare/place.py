"""Where the stages leave their tables: a folder anywhere, whose files are whole or absent."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from rtrain.data.cached import ROW_GROUP_ROWS
from rtrain.data.duck import literal, opened
from rtrain.data.prepare.config import Prepare
from rtrain.errors import DataError
from rtrain.storage import Folder, make_folder, sha256_of

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
def held(config: Prepare) -> Iterator[None]:
    """The output is this process's alone, however it ends; on storage that is not local nobody is kept out.

    Raises:
        DataError: another process is at work on it.
    """
    folder = Folder(config.out)
    if not folder.is_local:
        yield
        return
    lock = Path(folder.path).with_name(f".{Path(folder.path).name}.lock")
    make_folder(str(lock.parent))
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"{config.out}: another data prepare is at work on it. Let that one end, or stop it first"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
            with suppress(FileNotFoundError):  # removed by its holder since it was opened
                if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                    break
        stack.callback(lock.unlink, missing_ok=True)  # before it is let go
        yield


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
