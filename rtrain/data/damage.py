"""Where a Parquet file is broken: which row group, which of its rows and which column."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from rtrain.storage.patience import may_pass


@contextmanager
def telling_where(
    reader: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], *, remote: bool
) -> Iterator[None]:
    """Let an error in reading row groups say where: each column of each is read alone until one cannot be.

    Of no columns, nothing is read again, and the first of the groups is what is named. What may pass by itself, of a
    storage that is `remote` or not, stays as it is.

    Raises:
        OSError: what was raised, with row group, rows and column before it.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        if may_pass(error, remote=remote):
            raise
        raise OSError(f"{_place(reader, groups, columns)}{error}") from None


def _place(reader: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> str:
    """Empty where all can be read by now, as of a storage that failed once."""
    if not columns:
        return f"{_named(reader, groups[0])}: "
    for group in groups:
        for column in columns:
            try:
                reader.read_row_group(group, columns=[column])
            except (pa.ArrowException, OSError):
                return f"{_named(reader, group)}, column {column!r}: "
    return ""


def _named(reader: pq.ParquetFile, group: int) -> str:
    rows = [reader.metadata.row_group(index).num_rows for index in range(group + 1)]
    return f"rows {sum(rows[:-1])}..{sum(rows) - 1} (row group {group})"
