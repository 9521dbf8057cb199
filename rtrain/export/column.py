"""An export's logits as a column beside the rows that they are of, such as a teacher's for its students."""

import pyarrow as pa
import pyarrow.parquet as pq

from rtrain import notices
from rtrain.data.parquet import ParquetRows
from rtrain.errors import ConfigError, DataError
from rtrain.export.artifact import Predictor
from rtrain.scratch import Scratch
from rtrain.storage import Folder

BATCH = 8192
"""Rows that go through the model at once."""


@notices.aside()
def predict_column(export: str, source: str, to: str, *, column: str = "teacher_logit") -> str:
    """Write the rows of `source` with what an export's model gives for each as a further column; returns `to`.

    The column is float32: the logit of the label, or the number where the model predicts numbers. Rows, their order and
    row groups are the source's, of which one is in memory at a time. The result is made in the temporary folder,
    compressed, and then put in its place as a whole: before that nothing is there, or what was there before.

    Args:
        export: path or URI of an export folder.
        source: path or URI of a Parquet file, or of a folder of them, with the features that the model reads.
        to: path or URI of the Parquet file to write, `*.parquet`; it may be `source`, if that is one file.
        column: name of the new column.

    Raises:
        ConfigError: the model predicts several labels.
        CheckpointError: no export there, or files of it that were altered.
        DataError: rows that cannot be read or do not fit the model's schema, or that have the column already; a place
            for no such file, or one among the files of `source`.
    """
    parent, _, name = to.rpartition("/")
    if not name.endswith(".parquet") or parent == source.rstrip("/"):
        raise DataError(f"{to}: the result is one file, not among the source's. Give another path, as taught.parquet")
    predictor, rows = Predictor(export), ParquetRows(source)
    labels = [label.name for label in predictor.schema.labels]
    if len(labels) > 1:
        raise ConfigError(f"export {export!r}: it predicts {', '.join(labels)}, but a column holds one. Give another")
    if column in rows.schema.names:
        raise DataError(f"{source}: there is a column {column!r} already. Give column= another name, or drop it")
    written = rows.schema.append(pa.field(column, pa.float32()))
    with Scratch("column") as scratch:
        local = scratch / "rows.parquet"
        with pq.ParquetWriter(local, written, write_page_checksum=True) as writer:
            for group in rows.row_groups:
                table = rows.read(group.first_row, group.stop)
                found = [
                    predictor.outputs(
                        table.slice(start, BATCH), where=rows.name(group), first_row=group.file_row + start
                    ).numpy()
                    for start in range(0, group.rows, BATCH)
                ]
                writer.write_table(
                    table.append_column(written.field(column), pa.chunked_array(found)), row_group_size=group.rows
                )
        Folder(parent or ".").adopt(local, name)
    return to
