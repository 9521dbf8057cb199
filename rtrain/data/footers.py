"""What the footers of Parquet files tell of rows that cannot be trained on, before one is read."""

from collections.abc import Iterable

from rtrain.data.encode import encode
from rtrain.data.parquet import ParquetRows, RowGroup
from rtrain.moment import Age
from rtrain.schema import Id, Schema


def refuse_by_footers(rows: ParquetRows, groups: Iterable[RowGroup], schema: Schema) -> None:
    """Refuse ids beyond their tables, labels that are neither 0 nor 1, and times behind their row's, of any split.

    By each row group's least and greatest value; a group in which one is outside is read, to name the row. What the
    footers do not tell is found when its rows are read.

    Raises:
        DataError: such a value; names file, row, feature and value.
    """
    within = {f.name: (0, f.table_rows - 1) for f in schema.ids if isinstance(f, Id) and not f.knows_missing}
    within |= {label.name: (0, 1) for label in schema.labels if label.kind == "binary"}
    older = [f.times for f in schema.timed]
    older += [f.column for f in schema.made if isinstance(f, Age) and f.future == "refuse"]
    for group in groups:
        spans = rows.spans_of(group)
        outside = [
            name
            for name, (least, most) in within.items()
            if name in spans and not (least <= spans[name][0] and spans[name][1] <= most)
        ]
        # Of numbers of seconds alone: a footer has the times of timestamps in units of its own.
        latest = spans[schema.time][1] if schema.time in spans else None
        if outside or (latest is not None and any(spans[name][1] > latest for name in older if name in spans)):
            shown = rows.file_rows(group.first_row, group.stop)
            encode(
                rows.read(group.first_row, group.stop, schema.arrow(label=True).names),
                schema,
                label=True,
                where=f"{rows.name(group)} rows {shown[0]}..{shown[-1]}",
                first_row=group.first_row,
                shown=shown,
            )
