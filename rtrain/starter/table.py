"""The user's file as a table: CSV, JSON lines or Parquet, a column at a time where the file allows it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from rtrain.data.parquet import ParquetRows
from rtrain.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Given:
    """What `rtrain init` was given."""

    uri: str
    """Where it lies."""
    schema: pa.Schema
    """Its columns."""
    rows: int
    """How many there are."""
    read: Callable[[list[str]], pa.Table]
    """Reads some columns, all rows."""
    is_parquet: bool
    """Whether a run could read it as it is."""

    def column(self, name: str) -> pa.ChunkedArray:
        """A column, its dictionary (pandas: category) decoded."""
        column = self.read([name]).column(0)
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def given(uri: str) -> Given:
    """Open a file, or a folder of Parquet files.

    Raises:
        DataError: nothing there, unreadable, no rows, or two columns of one name.
    """
    path = Path(uri)
    suffix = path.suffix.lower()
    if suffix in DELIMITERS or suffix in JSON_LINES:
        if "://" in uri:
            raise DataError(f"{uri}: CSV and JSON lines are read from this machine alone. Copy the file here first")
        opened = of_table(uri, _read(path, suffix), is_parquet=False)
    else:
        if "://" not in uri and not path.exists():
            raise DataError(f"{uri}: no such file or folder")
        rows = ParquetRows(uri)
        opened = Given(uri, rows.schema, rows.rows, lambda names: rows.read(0, rows.rows, names), is_parquet=True)
    if not opened.rows:
        raise DataError(f"{uri}: there are no rows in it")
    for name in opened.schema.names:
        if opened.schema.names.count(name) > 1:
            raise DataError(f"{uri}: there are two columns {name!r}. Drop or rename one")
    return opened


def of_table(uri: str, table: pa.Table, *, is_parquet: bool) -> Given:
    """A table that is in memory already."""
    return Given(uri, table.schema, table.num_rows, table.select, is_parquet)


def _read(path: Path, suffix: str) -> pa.Table:
    try:
        if suffix in JSON_LINES:
            return pa.json.read_json(path)
        return pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(delimiter=DELIMITERS[suffix]),
            # An empty field is a missing word, not a word of no letters.
            convert_options=pa.csv.ConvertOptions(strings_can_be_null=True),
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        wanted = "one JSON object a line" if suffix in JSON_LINES else "a first line of column names, then rows"
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({why}). It must hold {wanted}") from None
