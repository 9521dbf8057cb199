"""What the footers of Parquet files tell of rows that cannot be trained on, before one is read."""

from collections.abc import Iterable

from rtrain.data.encode import encode
from rtrain.data.footer import RowGroup
from rtrain.data.parquet import ParquetRows
from rtrain.data.place import of_group
from rtrain.encodings import LARGEST
from rtrain.moment import Age
from rtrain.schema import Dense, Id, IdList, Schema


def refuse_by_footers(rows: ParquetRows, groups: Iterable[RowGroup], schema: Schema) -> None:
    """Refuse ids beyond their tables, labels that are neither 0 nor 1, numbers that float32 cannot hold, times behind
    their row's, and nulls where there must be a value, of any split.

    By each row group's least and greatest value and its nulls; a group in which one is wrong is read, to name the row.
    What the footers do not tell is found when its rows are read.

    Raises:
        DataError: such a value; names file, row, feature and value.
    """
    within: dict[str, tuple[float, float]]
    stored = [f for f in schema.ids if isinstance(f, Id) and (f.numbered or not f.knows_missing)]
    within = {f.name: (0, f.table_rows - 1) for f in stored}
    within |= {label.name: (0, 1) if label.kind == "binary" else (-LARGEST, LARGEST) for label in schema.labels}
    within |= {schema.weight: (0, LARGEST), schema.teacher: (-LARGEST, LARGEST)}
    within |= {f.name: f.reach() for f in schema.dense if isinstance(f, Dense)}
    singles = [f for f in schema.ids if isinstance(f, Id) and not isinstance(f, IdList)]
    needed = {f.name for f in singles if not f.knows_missing} | {schema.weight}
    needed |= {f.name for f in schema.dense if isinstance(f, Dense) and f.missing is None}
    needed |= {f.column or schema.time for f in schema.made if f.missing is None}
    needed |= {label.name for label in schema.labels if not label.optional}
    older = [f.times for f in schema.timed]
    older += [f.column for f in schema.made if isinstance(f, Age) and f.future == "refuse"]
    for group in groups:
        spans = rows.spans_of(group)
        empty = needed & rows.with_nulls(group)
        outside = [
            name
            for name, (least, most) in within.items()
            if name in spans and not (least <= spans[name][0] and spans[name][1] <= most)
        ]
        # Of numbers of seconds alone: a footer has the times of timestamps in units of its own.
        latest = spans[schema.time][1] if schema.time in spans else None
        if outside or empty or (latest is not None and any(spans[name][1] > latest for name in older if name in spans)):
            shown = rows.file_rows(group.first_row, group.stop)
            encode(
                rows.read(group.first_row, group.stop, schema.arrow(label=True).names),
                schema,
                label=True,
                where=of_group(rows.name(group), group.index, shown),
                first_row=group.first_row,
                shown=shown,
            )
