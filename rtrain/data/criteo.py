"""Criteo's click logs, from their published text to Parquet.

A line is a label, 13 whole numbers and 26 words of 8 hexadecimal digits, with tabs between them; any but the label may
be missing. So are the Display Advertising Challenge (45 million lines, 7 days) and the Terabyte logs (4.4 billion, 24
days). Their order is time's.

    rtrain data criteo train.txt.gz --out s3://bucket/criteo

A source `criteo:s3://bucket/train.txt.gz` is converted where it is opened, once on each node, into the cache.

Shape legend: N rows.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from rtrain.data import synthetic
from rtrain.data.cached import ROW_GROUP_ROWS, locked, write
from rtrain.errors import DataError, one_line
from rtrain.storage import Folder

SAMPLE, VERSION = "criteo-sample", 1
SAMPLE_ROWS = 20_000
NUMBERS, WORDS, LABEL, ORDER = synthetic.DENSE, synthetic.IDS, "label", "at"
OF_TEXT = "criteo:"
"""Before the URI of a text, as the source of data."""
HASHED = 2**18
"""Rows of each word's table: a word's row is 1 + its number modulo HASHED - 1; row 0 is for what is missing."""
SHARD_ROWS = 1 << 20
BLOCK_BYTES = 1 << 25

_DIGIT = np.full(256, -1, np.int64)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_DIGIT[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def convert(source: str, out: str, *, hashed: int = HASHED, say: Callable[[str], None] = lambda _: None) -> str:
    """Write the rows of a text file (any fsspec URI, also compressed) as a folder of Parquet files; returns `out`.

    Columns: `label` int8, `i1`..`i13` int64 with nulls, `c1`..`c26` int32 below `hashed`, `at` int64, the row's number.
    The folder appears when it is whole. `say`: told how far it is.

    Raises:
        DataError: a source that is not there or no such text, with the row; or a folder that holds something.
    """
    if hashed < 2:
        raise DataError(f"--rows: a table has room for what is missing and for one word at least, got {hashed}")
    folder, partial = Folder(out), Folder(f"{out.rstrip('/')}.partial")
    if folder.names():
        raise DataError(f"{out}: it is not empty. Give a new folder")
    partial.remove()
    whole = False
    try:
        rows = 0
        for number, table in enumerate(_shards(_tables(source, hashed))):
            packed = io.BytesIO()
            pq.write_table(table, packed, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
            partial.write(f"{number:05d}.parquet", packed.getvalue())
            rows += table.num_rows
            say(f"{rows:,} rows")
        folder.remove()
        whole = True
        partial.move(folder)
    except BaseException:
        partial.remove()
        if whole:
            folder.remove()  # a part is in it where the storage renames nothing
        raise
    return out


def converted(uri: str, cache: Path, say: Callable[[str], None]) -> Path:
    """The folder of a text's rows in a cache, made at the first call; a text that has changed gets another folder.

    Raises:
        DataError: as `convert`.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        found = fs.info(path)
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{uri}: no such file. Check data.source") from None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{uri}: it cannot be read ({one_line(error)})") from None
    if found["type"] != "file":
        raise DataError(f"{uri}: it is a folder. Give one text, or convert them by `rtrain data criteo` first")
    at = uri if "://" in uri else str(Path(uri).absolute())
    marks = [str(found.get(mark)) for mark in ("size", "ETag", "etag", "mtime", "LastModified", "updated")]
    name = f"criteo-{hashlib.sha256(repr([VERSION, HASHED, at, *marks]).encode()).hexdigest()[:16]}"
    folder = cache / name
    with locked(cache / f".{name}.lock"):
        if not folder.exists():
            say(f"converting {uri} into {folder}")
            convert(uri, str(folder), say=say)
    return folder


def sample(out_parquet: Path) -> None:
    """Write rows of that shape with planted labels, as `convert` would: SAMPLE_ROWS of `rtrain.data.synthetic`."""
    drawn = out_parquet.with_name(".drawn.parquet")
    text = out_parquet.with_name(".sample.tmp")
    try:
        synthetic.plant(drawn, rows=SAMPLE_ROWS)
        text.write_text("\n".join(_lines(pq.read_table(drawn))) + "\n")
        write(pa.concat_tables(_tables(str(text), HASHED)), out_parquet, VERSION)
    finally:
        text.unlink(missing_ok=True)
        drawn.unlink(missing_ok=True)


def _lines(table: pa.Table) -> Iterator[str]:
    """Each row as Criteo writes one; every eleventh number and every thirteenth word is missing."""
    missing = np.random.default_rng(synthetic.SEED)
    numbers = [np.exp(1.5 * table[name].to_numpy()).astype(np.int64) for name in NUMBERS]
    words = [table[name].to_numpy().astype(np.int64) * 2654435761 % 2**32 for name in WORDS]
    for row, label in enumerate(table[LABEL].to_pylist()):
        gone = missing.random(len(NUMBERS) + len(WORDS)) < [*[1 / 11] * len(NUMBERS), *[1 / 13] * len(WORDS)]
        texts = [str(of[row]) for of in numbers] + [f"{of[row]:08x}" for of in words]
        yield "\t".join([str(label), *("" if left_out else text for left_out, text in zip(gone, texts, strict=True))])


def _tables(source: str, hashed: int) -> Iterator[pa.Table]:
    types = {LABEL: pa.int8(), **dict.fromkeys(NUMBERS, pa.int64()), **dict.fromkeys(WORDS, pa.string())}
    rows = 0
    try:
        with fsspec.open(source, "rb", compression="infer") as file:
            reader = csv.open_csv(
                file,
                read_options=csv.ReadOptions(column_names=list(types), block_size=BLOCK_BYTES),
                parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
                convert_options=csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
            )
            for batch in reader:
                yield _table(pa.Table.from_batches([batch]), source, rows, hashed)
                rows += batch.num_rows
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except (pa.ArrowException, OSError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"{source}: behind row {rows} it is no text of Criteo's ({why}). A line is a label, "
            "13 whole numbers and 26 words, between tabs; mend or drop that line"
        ) from None


def _table(batch: pa.Table, source: str, first: int, hashed: int) -> pa.Table:
    label = batch[LABEL]
    wrong = pc.invert(pc.fill_null(pc.is_in(label, value_set=pa.array([0, 1], pa.int8())), False)).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{source}: the label of row {first + row} is {label[row].as_py()}; it must be 0 or 1")
    columns = {LABEL: label} | {name: batch[name] for name in NUMBERS}
    for name in WORDS:
        columns[name] = pa.array(_rows_of_words(batch[name], hashed, f"{source}: column {name!r}", first))
    columns[ORDER] = pa.array(np.arange(first, first + batch.num_rows))
    return pa.table(columns)


def _rows_of_words(column: pa.ChunkedArray, hashed: int, where: str, first: int) -> NDArray[np.int32]:
    """int32 [N]: the table's row of each word."""
    filled = pc.fill_null(column, "0" * 8).combine_chunks()
    wrong = pc.not_equal(pc.binary_length(filled), 8).to_numpy(zero_copy_only=False)
    if not wrong.any():
        start = int(np.frombuffer(filled.buffers()[1], np.int32)[filled.offset])
        digits = _DIGIT[np.frombuffer(filled.buffers()[2], np.uint8)[start : start + 8 * len(filled)].reshape(-1, 8)]
        wrong = (digits < 0).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{where}, row {first + row}: {filled[row].as_py()!r} is no word of 8 hexadecimal digits")
    words = digits @ (16 ** np.arange(7, -1, -1))
    missing = pc.is_null(column).to_numpy()
    return np.where(missing, 0, 1 + words % (hashed - 1)).astype(np.int32)


def _shards(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, SHARD_ROWS at once."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(t.num_rows for t in held) >= SHARD_ROWS:
            whole = pa.concat_tables(held)
            yield whole.slice(0, SHARD_ROWS)
            held = [whole.slice(SHARD_ROWS)]
    if held and sum(t.num_rows for t in held):
        yield pa.concat_tables(held)
