"""What is kept of the footers of Parquet files."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"


@dataclass(frozen=True)
class RowGroup:
    """What Parquet reads at once."""

    first_row: int
    """Number of its first row in the data set."""
    rows: int
    """Rows in the group."""
    file: int
    """Index in `ParquetRows.files`."""
    index: int
    """Index of the group in its file."""
    file_row: int
    """Number of its first row in its file."""

    @property
    def stop(self) -> int:
        """Number of the row behind its last."""
        return self.first_row + self.rows


@dataclass(frozen=True)
class Footer:
    """What is kept of a file's."""

    packed: bytes
    packed_from: int
    """Bytes of the footer as it is in the file."""
    schema: pa.Schema
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    size_bytes: int
    changed_ns: int
    """When the file was last written to; 0 where the storage is not asked."""
    digest: bytes

    def parsed(self) -> pq.FileMetaData:
        """All that the footer says."""
        return metadata_of(pa.decompress(self.packed, self.packed_from, codec="zstd"))


def metadata_of(footer: bytes) -> pq.FileMetaData:
    """The footer alone behind the magic reads as a file whose pages are never asked for."""
    return pq.read_metadata(pa.BufferReader(MAGIC + footer))
