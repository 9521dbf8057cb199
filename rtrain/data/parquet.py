"""Parquet files as one numbered sequence of rows, on any storage that fsspec reaches."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import groupby, islice
from typing import IO, Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from rtrain.data.agreed import agreed
from rtrain.data.damage import telling_where
from rtrain.data.footer import MAGIC, Footer, RowGroup, metadata_of
from rtrain.data.partitions import is_partition, partitions_of
from rtrain.errors import DataError, RtrainError, briefly, did_you_mean
from rtrain.storage import Patience, StorageDown, refused_by_storage

T = TypeVar("T")
UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
"""Parquet's names of a timestamp's unit -> Arrow's."""


BUFFER_BYTES = 2**20
"""Of a column that is read bit by bit, what is read at once."""
HELD = 4096
"""Row groups whose footers are kept parsed, some 1 kB a column each; of the others a 30th of that is kept, packed."""


class ParquetRows:
    """The rows of one Parquet file, or of a folder of them (`*.parquet`, in the order of their names).

    A folder without such files may have folders in the Hive manner, `day=1/`, whose names are columns too. Files may
    differ in how wide a number is: all are read as the widest. Only the footers are read at first; the rows on `read`.

    Raises:
        DataError: nothing there, no Parquet, a truncated file, or files whose columns differ.
    """

    def __init__(self, uri: str, *, field: str = "data.source"):
        """`field`: of the config, where the URI stands, for messages."""
        self.uri, self._field = uri, field
        self._fs, path = _filesystem(uri)
        self._remote = not isinstance(self._fs, LocalFileSystem)
        self.patience = Patience()
        self.files = self._patiently(uri, lambda: _files(self._fs, path, uri, field))
        root = path.rstrip("/") + "/"
        self._shown = [file.removeprefix(root) if file != path else file.rpartition("/")[2] for file in self.files]
        self._partitions = partitions_of(self._shown, uri)
        # Remote footers cost a round trip each, and a folder may have thousands.
        with ThreadPoolExecutor(max_workers=min(16, len(self.files))) as pool:
            self._footers = list(pool.map(self._footer, self.files))
        footers, count = self._footers, sum(len(footer.group_rows) for footer in self._footers)
        held = max(1, HELD * len(footers) // max(1, count))
        self._metadata = lru_cache(maxsize=held)(lambda file: footers[file].parsed())
        self.schema: pa.Schema = self._one_schema()
        self.row_groups: tuple[RowGroup, ...] = tuple(self._row_groups())
        self.rows: int = self.row_groups[-1].stop
        self._firsts = [group.first_row for group in self.row_groups]

    @property
    def stored(self) -> "ParquetRows":
        """Itself; of rows in another order (`rtrain.data.parted`) those that lie in the files."""
        return self

    def name(self, group: RowGroup) -> str:
        """The path of the file that holds a row group, within the data's folder."""
        return self._shown[group.file]

    def written_since(self, seconds: float) -> list[str]:
        """Paths within the data's folder of the files that were written to after a moment, as far as it is known."""
        written = zip(self._shown, self._footers, strict=True)
        return [name for name, footer in written if footer.changed_ns > seconds * 1e9]

    def groups(self, start: int, stop: int) -> tuple[RowGroup, ...]:
        """The row groups that hold rows [start, stop)."""
        if not 0 <= start <= stop <= self.rows:
            raise DataError(f"{self.uri}: rows {start}..{stop - 1} are asked for, but it has rows 0..{self.rows - 1}")
        if start == stop:
            return ()
        return self.row_groups[bisect_right(self._firsts, start) - 1 : bisect_right(self._firsts, stop - 1)]

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows [start, stop) with the given columns (none: all).

        Every row group that holds one of the rows is read whole; page checksums are verified.

        Raises:
            DataError: rows or columns that are not there, or a damaged file, with its name.
            StorageDown: the storage was away for longer than it is waited for.
        """
        names = self.schema.names
        wanted = names if columns is None else list(columns)
        for column in wanted:
            if column not in names:
                near = did_you_mean(column, names)
                known = ". The columns are " + ", ".join(names)
                raise DataError(f"{self.uri}: column {column!r} is missing{near or known}")
        asked = pa.schema([self.schema.field(c) for c in wanted])
        stored = [column for column in wanted if column not in self._partitions.names]
        tables = [asked.empty_table()]
        groups = self.groups(start, stop)
        for file, together in groupby(groups, key=lambda group: group.file):
            mine = list(together)
            found = self._patiently(
                self.files[file], partial(self._read_groups, file, [group.index for group in mine], stored)
            )
            of_folders = self._partitions.columns(file, wanted, sum(group.rows for group in mine))
            if of_folders:
                found = pa.table({name: found[name] for name in stored} | of_folders)
            # The files' columns have the same names, but perhaps another order, other metadata, or narrower numbers.
            found = found.select(wanted).replace_schema_metadata()
            tables.append(found if found.schema.equals(asked) else found.cast(asked))
        table = pa.concat_tables(tables)
        return table.slice(start - groups[0].first_row, stop - start) if groups else table

    def _read_groups(self, file: int, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        path = self.files[file]
        with self._open(path) as opened:
            self._refuse_change(path, self._footers[file], opened)
            # Reading ahead of the decoder pays for a round trip, and costs the compressed bytes in memory.
            reader = pq.ParquetFile(
                opened, metadata=self._metadata(file), pre_buffer=self._remote, page_checksum_verification=True
            )
            with telling_where(reader, groups, columns, remote=self._remote):
                return reader.read_row_groups(groups, columns=columns)

    def batches(self, group: RowGroup, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """A row group's rows with columns of the files, at most `rows` at once: for a group too large to be held.

        Raises:
            DataError: as `read`.
            StorageDown: as `read`.
        """
        path, given = self.files[group.file], 0
        under_way: Iterator[pa.RecordBatch] | None = None

        def following() -> pa.RecordBatch | None:
            nonlocal under_way
            # After a failure from the beginning, without those that were given.
            under_way = under_way or islice(self._batches(group, columns, rows), given, None)
            try:
                return next(under_way, None)
            except Exception:
                under_way = None
                raise

        while (batch := self._patiently(path, following)) is not None:
            given += 1
            yield batch

    def _batches(self, group: RowGroup, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        path = self.files[group.file]
        with self._open(path) as opened:
            self._refuse_change(path, self._footers[group.file], opened)
            reader = pq.ParquetFile(
                opened,
                metadata=self._metadata(group.file),
                pre_buffer=False,  # which would hold the whole group, whatever the buffer
                buffer_size=BUFFER_BYTES,
                page_checksum_verification=True,
            )
            asked = [self.schema.field(column).type for column in columns]
            with telling_where(reader, [group.index], (), remote=self._remote):
                for batch in reader.iter_batches(rows, row_groups=[group.index], columns=list(columns)):
                    found = [batch.column(name).cast(kind) for name, kind in zip(columns, asked, strict=True)]
                    yield pa.RecordBatch.from_arrays(found, list(columns))

    def spans(self, column: str) -> list[tuple[Any, Any]] | None:
        """The lowest and the highest value of each row group by the footers alone; times as the numbers `read` has.

        None where a footer does not say, a value is missing, or the type is no whole number and no timestamp (of
        floats a footer does not tell whether some are no numbers).
        """
        kind = self.schema.field(column).type
        if not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
            return None
        found = []
        for group in self.row_groups:
            stored = self._metadata(group.file).row_group(group.index)
            if column in self._partitions.names:
                value = self._partitions.values[group.file][self._partitions.names.index(column)]
                if value is None:
                    return None
                found.append((value, value))
                continue
            at = next(n for n in range(stored.num_columns) if stored.column(n).path_in_schema == column)
            known = stored.column(at).statistics
            if known is None or not known.has_min_max or not known.has_null_count or known.null_count:
                return None
            if pa.types.is_timestamp(kind):
                unit = json.loads(known.logical_type.to_json()).get("timeUnit", "")
                if UNITS.get(unit) != kind.unit:
                    return None
                found.append((known.min_raw, known.max_raw))
            else:
                found.append((known.min, known.max))
        return found

    def spans_of(self, group: RowGroup) -> dict[str, tuple[Any, Any]]:
        """The lowest and the highest number in each column of a row group, of a list column in its lists; where the
        footer says."""
        stored = self._metadata(group.file).row_group(group.index)
        of_folders = zip(self._partitions.names, self._partitions.values[group.file], strict=True)
        found: dict[str, tuple[Any, Any]] = {
            name: (value, value) for name, value in of_folders if isinstance(value, int)
        }
        for column in map(stored.column, range(stored.num_columns)):
            known = column.statistics
            if known is not None and known.has_min_max and isinstance(known.min, int | float):
                found[column.path_in_schema.split(".")[0]] = (known.min, known.max)
        return found

    def with_nulls(self, group: RowGroup) -> set[str]:
        """The columns in which a row of a row group has nothing, but for lists; where the footer says."""
        stored = self._metadata(group.file).row_group(group.index)
        of_folders = zip(self._partitions.names, self._partitions.values[group.file], strict=True)
        found = {name for name, value in of_folders if value is None}
        for column in map(stored.column, range(stored.num_columns)):
            known = column.statistics
            if known is not None and known.has_null_count and known.null_count:
                found.add(column.path_in_schema)
        return found

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """Every row group once: its rows with the given columns (none: all), and their numbers."""
        for group in self.row_groups:
            yield self.read(group.first_row, group.stop, columns), np.arange(group.first_row, group.stop)

    def file_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Number of each of the rows [start, stop) in its file, from 0."""
        groups = self.groups(start, stop)
        rows = [np.arange(group.rows) + group.file_row for group in groups]
        return np.concatenate(rows)[start - groups[0].first_row :][: stop - start]

    def fingerprint(self) -> str:
        """16 hex digits over the names, sizes and footers of the files: changes when the data does."""
        digest = hashlib.sha256()
        for path, footer in zip(self._shown, self._footers, strict=True):
            digest.update(f"{path}\n{footer.size_bytes}\n".encode() + footer.digest)
        return digest.hexdigest()[:16]

    def _open(self, path: str) -> Any:
        # Arrow's own files need no Python lock to read.
        return self._fs.open(path, "rb") if self._remote else pa.OSFile(path)

    def _patiently(self, path: str, work: Callable[[], T]) -> T:
        """What `work` gives, which reads of a file, once the storage is there; its errors name the file."""
        with self._naming(path):
            return self.patience.run(work, what=f"{path}: read", remote=self._remote)

    def _footer(self, path: str) -> Footer:
        return self._patiently(path, partial(self._read_footer, path))

    def _read_footer(self, path: str) -> Footer:
        size, changed_ns = int(self._fs.size(path)), self._changed_ns(path)
        with self._open(path) as opened:
            footer = _footer_bytes(opened, size, path)
        metadata = metadata_of(footer)
        schema = metadata.schema.to_arrow_schema()
        rows = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        packed = pa.compress(footer, codec="zstd", asbytes=True)
        return Footer(packed, len(footer), schema, rows, size, changed_ns, hashlib.sha256(footer).digest())

    def _changed_ns(self, path: str) -> int:
        return 0 if self._remote else os.stat(path).st_mtime_ns

    def _refuse_change(self, path: str, footer: Footer, opened: Any) -> None:
        """Refuse a file that is not what its footer was read of: its rows would be others, or none."""
        opened.seek(0, os.SEEK_END)
        size = int(opened.tell())
        same = size == footer.size_bytes
        if same and self._changed_ns(path) != footer.changed_ns:
            opened.seek(0)
            same = hashlib.sha256(_footer_bytes(opened, size, path)).digest() == footer.digest
        if not same:
            raise DataError(
                f"{path}: it was written to while it was in use ({footer.size_bytes} bytes before, {size} now). "
                "Bring it back as it was to go on, or train anew on what there is now"
            )
        opened.seek(0)

    def _one_schema(self) -> pa.Schema:
        found = list[tuple[str, pa.Schema]]()
        for path, footer in zip(self.files, self._footers, strict=True):
            for name in set(self._partitions.names) & set(footer.schema.names):
                raise DataError(f"{path}: column {name!r} is in the file and in its folder's name. Drop it from one")
            if any(footer.group_rows):  # a file without rows may say anything of its columns: an empty frame does
                found.append((path, footer.schema))
        if not found:
            raise DataError(f"{self.uri}: there are no rows in it")
        return pa.schema([*agreed(found), *self._partitions.fields])

    def _row_groups(self) -> Iterator[RowGroup]:
        first_row = 0
        for file, footer in enumerate(self._footers):
            file_row = 0
            for index, rows in enumerate(footer.group_rows):
                if rows:
                    yield RowGroup(first_row, rows, file, index, file_row)
                first_row += rows
                file_row += rows

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Turn the storage's and Arrow's errors into ones that name the file and the fix."""
        try:
            yield
        except (RtrainError, StorageDown):
            raise
        except FileNotFoundError:
            raise DataError(f"{path}: no such file or folder. Check {self._field}") from None
        except PermissionError:
            raise DataError(f"{path}: no permission to read it. Check its owner or the credentials") from None
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())
            raise DataError(f"{path}: cannot be read ({why[:200]}). If it is damaged, copy or write it again") from None
        except Exception as error:
            if refused_by_storage(error) is None:
                raise
            raise DataError(f"{path}: its storage refuses ({briefly(error)}). Check the URI and credentials") from None


def _filesystem(uri: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise DataError(f"{uri}: this storage cannot be used ({' '.join(str(error).split())})") from None
    return fs, str(path)


def _files(fs: Any, path: str, uri: str, field: str) -> list[str]:
    """Listed once: the folder, or all that is below it where the files lie in folders in the Hive manner."""
    # fsspec's `isfile` and `isdir` of a storage that is away say no.
    if fs.info(path)["type"] == "file":
        return [path]
    files, parted = list[str](), False
    for entry in fs.ls(path, detail=True):
        name, is_folder = str(entry["name"]).rstrip("/"), entry["type"] == "directory"  # a link is neither, and is read
        last = name.rpartition("/")[2]
        if name == path.rstrip("/"):  # its own marker, of which some storages have one
            continue
        parted |= is_folder and is_partition(last)
        if _is_read(last):
            if is_folder:
                raise DataError(f"{name}: a folder, but named as a file. Rename it, move it away, or name it alone")
            files.append(name)
    if files and not parted:
        return sorted(files)
    files.clear()
    root = path.rstrip("/") + "/"
    for name in map(str, fs.find(path)):
        *folders, file = name.removeprefix(root).split("/")
        if not all(map(is_partition, folders)):
            continue
        if _is_read(file):
            files.append(name)
        elif is_partition(file) and fs.isdir(name):
            raise DataError(
                f"{name}: a link to a folder, which a listing does not follow. Move the folder itself there"
            )
    if not files:
        raise DataError(
            f"{uri}: the folder has no .parquet file directly in it, or in folders such as day=1. Check {field}"
        )
    return sorted(files)


def _is_read(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith((".", "_"))


def _footer_bytes(opened: IO[bytes], size: int, path: str) -> bytes:
    """The Parquet footer: metadata, its length in 4 bytes, magic."""
    if not size:
        raise DataError(f"{path}: it is empty, as a file whose writing was cut off. Write it again, or delete it")
    if size < 12 or opened.read(4) != MAGIC:
        raise DataError(
            f"{path}: not a Parquet file. Convert it to Parquet ('rtrain init' makes it of CSV and JSON lines, "
            "'rtrain data criteo' of Criteo's click logs), "
            "or name another file"
        )
    opened.seek(size - 8)
    tail = opened.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length + 12 > size:
        raise DataError(f"{path}: truncated: its {size} bytes do not end as Parquet does. Copy or write it again")
    opened.seek(size - 8 - length)
    return opened.read(length + 8)
