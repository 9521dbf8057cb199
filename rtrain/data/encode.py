"""Arrow rows -> validated, encoded numpy columns: one function for training files and served requests.

What the model is trained on and what it is asked about go through the same code, so they cannot
be read differently. Every value is checked; the first one that cannot be used is named.
"""

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.columns import Columns, Lists, concat
from rtrain.data.few import FEW, of_few
from rtrain.data.hashed import hashes, into_keys, into_rows
from rtrain.data.id_weights import weights_of
from rtrain.data.made import ages, moment_ids
from rtrain.data.moments import ago, moments
from rtrain.data.nested import innermost, is_list, is_nested, one_list
from rtrain.data.place import Place, first, plain
from rtrain.data.texts import text_ids
from rtrain.data.vocabularies import known_of
from rtrain.errors import DataError, did_you_mean
from rtrain.moment import Age, Moment
from rtrain.schema import Dense, Id, IdList, IdSequence, Label, Schema
from rtrain.text import Text
from rtrain.vector import Embedding

__all__ = ["Columns", "check_columns", "concat", "encode"]


def encode(
    table: pa.Table,
    schema: Schema,
    *,
    label: bool,
    where: str,
    first_row: int,
    shown: NDArray[np.integer] | None = None,
    fits: pa.Schema | None = None,
) -> Columns:
    """Check and encode all rows of `table`; columns that the schema does not name are left out.

    Args:
        table: rows with the columns of `schema.arrow(label=label)`, or of types that widen to them.
        schema: what the model reads.
        label: whether the label is there to be read; without it labels are 0.
        where: what messages call the table: `train.parquet rows 0..65535 (row group 0)`, `request`.
        first_row: number of the table's first row in the data set (`Batch.row`).
        shown: each row's number as messages count it; none: from `first_row` on.
        fits: columns of the very types of `schema.arrow`, as requests have; a table of the same is not asked again.

    Raises:
        DataError: a column missing or of the wrong type, or a value that cannot be used, with its row.
    """
    rows, fitting = table.num_rows, fits is not None and table.schema.equals(fits)
    if not fitting:
        check_columns(table.schema, schema, label=label, where=where)
    numbers, ids = of_few(table, schema) if fitting and rows <= FEW else ({}, {})
    at = Place(where, np.arange(first_row, first_row + rows) if shown is None else shown)
    dense, number = np.empty((rows, len(schema.kept_widths)), np.float32), 0
    for feature in schema.dense:
        after = number + len(feature.kept)
        if feature.name in numbers:
            dense[:, number] = numbers[feature.name]
        else:
            dense[:, number:after] = _dense(table, feature, schema, at)
        number = after
    singles: list[NDArray[np.integer]] = []
    lists: list[Lists] = []
    groups = np.zeros(rows, np.int64)
    for spec in schema.ids:
        if isinstance(spec, Moment):
            singles.append(moment_ids(table, spec, schema, at))
            continue
        if spec.name in ids and spec.name != schema.group:
            singles.append(ids[spec.name])
            continue
        column = table.column(spec.name)
        if isinstance(spec, Text):
            lists.append(text_ids(column, spec))
        elif isinstance(spec, IdList):
            lists.append(_lists(column, spec, at))
        else:
            singles.append(_ids(column, spec, at, None))
            if spec.name == schema.group:
                groups = _groups(column, spec, singles[-1])
    # One matrix; int32 unless some table is too large for it.
    wide = np.result_type(np.int32, *singles)
    return Columns(
        schema=schema,
        dense=dense,
        singles=np.stack(singles, axis=1).astype(wide, copy=False) if singles else np.empty((rows, 0), wide),
        lists=tuple(lists),
        label=_all_labels(table, schema, at) if label else np.zeros(rows, np.float32),
        group=groups,
        row=np.arange(first_row, first_row + rows),
        weight=_weights(table.column(schema.weight), schema.weight, at) if label and schema.weight else None,
        teacher=_logits(table.column(schema.teacher), schema.teacher, at) if label and schema.teacher else None,
        times=_times(table, schema, at),
        id_weights=tuple(weights_of(table.column(f.name), table.column(f.weights), f, at) for f in schema.weighted),
    )


def check_columns(columns: pa.Schema, schema: Schema, *, label: bool, where: str) -> None:
    """Refuse columns that are missing or cannot hold what the schema's features need.

    Raises:
        DataError: the first such column, with the closest name or with both types.
    """
    # Of many columns: each of these is made of all.
    names, labels, clocks = columns.names, {one.name for one in schema.labels}, schema.clocks
    count = Counter(names)
    vectors = {f.name for f in schema.dense if isinstance(f, Embedding)}
    # Of the row's own moment, which sequences are told by, whole seconds alone.
    broken = set(schema.stamps) - ({schema.time} if schema.timed else set())
    for field in schema.arrow(label=label):
        if not count[field.name]:
            near = did_you_mean(field.name, names)
            raise DataError(
                f"{where}: column {field.name!r} is missing{near or '. The columns are ' + ', '.join(names)}"
            )
        if count[field.name] > 1:
            raise DataError(f"{where}: there are two columns {field.name!r}. Drop or rename one")
        got = columns.field(field.name).type
        is_label = field.name in labels
        fits = _widens(got, field.type, moments=field.name in clocks)
        fits = fits and not (field.name in vectors and is_nested(got))
        fits = fits or (field.name in broken and pa.types.is_floating(got))
        if not (fits or (is_label and pa.types.is_boolean(got))):
            raise DataError(
                f"{where}: column {field.name!r} is {got}, but the schema needs {field.type}. "
                "Cast the column, or change the kind of the feature"
            )


def _widens(got: pa.DataType, wanted: pa.DataType, *, moments: bool = False) -> bool:
    """Whether every value of type `got` is one of type `wanted`; a column of nulls only has any type, and a list may
    be one of lists, however deep.

    `moments`: whether the wanted whole numbers are seconds since 1970, which timestamps and dates are too.
    """
    is_ = pa.types
    if is_.is_dictionary(got):
        return _widens(got.value_type, wanted, moments=moments)
    if is_.is_null(got):
        return True
    if is_.is_list(wanted):
        return is_list(got) and _widens(innermost(got), wanted.value_type, moments=moments)
    if is_.is_string(wanted):
        return bool(is_.is_string(got) or is_.is_large_string(got))
    if moments and (is_.is_timestamp(got) or is_.is_date(got)):
        return True
    whole = is_.is_integer(got) and not is_.is_uint64(got)
    return bool(whole or (is_.is_floating(got) and is_.is_floating(wanted)))


def _dense(table: pa.Table, feature: Dense | Embedding | Age, schema: Schema, at: Place) -> NDArray[np.float32]:
    """[N, what a row keeps of the feature]"""
    if isinstance(feature, Age):
        return ages(table, feature, schema, at)
    column = table.column(feature.name)
    return _vectors(column, feature, at) if isinstance(feature, Embedding) else _numbers(column, feature, at)


def _numbers(column: pa.ChunkedArray, feature: Dense, at: Place) -> NDArray[np.float32]:
    """[N, 1]"""
    column = plain(column, pa.float64())
    what = f"feature {feature.name!r}"
    if column.null_count and feature.missing is None:
        row = first(pc.is_null(column).to_numpy())
        raise at.refuse(f"{what} is null", row, ". Give Dense(missing=...) a value to use instead, or fill the column")
    column = column.cast(pa.float64())
    raw = (column.fill_null(feature.missing) if column.null_count else column).to_numpy()
    # A float64 that float32 cannot hold becomes inf, and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[np.float32] = feature.scaled(raw).astype(np.float32)
    finite = np.isfinite(values) & np.isfinite(raw)
    if not finite.all():
        row = first(~finite)
        raise at.refuse(f"{what} is {raw[row]}", row, "; it must be a finite number that float32 can hold")
    return values[:, None]


def _vectors(column: pa.ChunkedArray, feature: Embedding, at: Place) -> NDArray[np.float32]:
    """[N, dim]"""
    column = plain(column, feature.arrow_type())
    what, there = f"feature {feature.name!r}", pc.is_valid(column).to_numpy()
    if feature.missing is None and not there.all():
        why = '. Give Embedding(missing="zeros"), or fill the column'
        raise at.refuse(f"{what} is null", first(~there), why)
    lengths = pc.list_value_length(column).fill_null(feature.dim).to_numpy()
    if (lengths != feature.dim).any():
        row = first(lengths != feature.dim)
        raise at.refuse(f"{what} has {lengths[row]} numbers", row, f", but its dim is {feature.dim}")
    flat = plain(pc.list_flatten(column), pa.float64())
    rows = np.repeat(np.flatnonzero(there), feature.dim)
    if flat.null_count:
        row = int(rows[first(pc.is_null(flat).to_numpy())])
        raise at.refuse(f"{what} has a null in its vector", row, ". Fill it, or drop the row")
    raw: NDArray[np.float64] = flat.cast(pa.float64()).to_numpy()
    if not _fits_float32(raw).all():
        index = first(~_fits_float32(raw))
        why = "; it must have finite numbers that float32 can hold"
        raise at.refuse(f"{what} has {raw[index]} in its vector", int(rows[index]), why)
    values = np.zeros((len(there), feature.dim), np.float32)
    values[there] = raw.reshape(-1, feature.dim)
    return values


def _times(table: pa.Table, schema: Schema, at: Place) -> tuple[Lists, ...]:
    """As `Columns.times`."""
    if not schema.timed:
        return ()
    moment = moments(table.column(schema.time), schema.time, at)
    return tuple(ago(table.column(f.name), table.column(f.times), f, moment, at) for f in schema.timed)


def _ids(column: pa.ChunkedArray, feature: Id, at: Place, offsets: NDArray[np.int64] | None) -> NDArray[np.integer]:
    """Ids of a column, or of the flat values of a list column whose lists begin at `offsets`."""

    def row_of(index: int) -> int:
        return index if offsets is None else int(np.searchsorted(offsets, index, side="right")) - 1

    what = f"feature {feature.name!r}"
    column = plain(column, pa.string() if feature.of_words else pa.int64())
    if column.null_count and (not feature.knows_missing or offsets is not None):
        row = row_of(first(pc.is_null(column).to_numpy()))
        has = "is null" if offsets is None else "has a null in its list"
        raise at.refuse(f"{what} {has}", row, ". Fill it, or drop the row")
    if feature.vocabulary:
        known = pa.array(feature.vocabulary, column.type)
        found: NDArray[np.int32] = pc.index_in(column, value_set=known).fill_null(-1).to_numpy()
        return found + np.int32(1)
    if feature.vocabulary_file and not feature.numbered:
        return known_of(feature.vocabulary_file).ids(column)
    if feature.hashed:
        return into_keys(column) if feature.managed else into_rows(column, feature.rows)
    rows = feature.table_rows
    values: NDArray[np.integer] = (column.fill_null(0) if column.null_count else column).to_numpy()
    if len(values) and (values.min() < 0 or values.max() >= rows):
        index = first((values < 0) | (values >= rows))
        raise at.refuse(
            f"{what} has id {values[index]}",
            row_of(index),
            f", but table {feature.table_name!r} has rows={rows} (valid 0..{rows - 1})",
        )
    return values.astype(np.int32 if rows <= 2**31 else np.int64, copy=False)


def _groups(column: pa.ChunkedArray, feature: Id, ids: NDArray[np.integer]) -> NDArray[np.int64]:
    """`Batch.group` of rows with these ids: one number a raw value, the same in every window and on every rank."""
    groups = ids.astype(np.int64)
    if feature.vocabulary_file and not feature.numbered:
        column = plain(column, feature.arrow_type())
        others: NDArray[np.int64] = hashes(pa.table({"value": column})).view(np.int64) | np.iinfo(np.int64).min
        return np.where((groups == 0) & column.is_valid().to_numpy(), others, groups)
    if feature.hashed:  # values that share a row are somebody of their own each
        column = plain(column, feature.arrow_type())
        bits: NDArray[np.int64] = hashes(pa.table({"value": column})).view(np.int64)
        return np.where(groups > 0, bits | np.iinfo(np.int64).min, 0)
    if not feature.vocabulary:
        return groups
    column = plain(column, pa.string())
    strangers = np.flatnonzero((groups == 0) & column.is_valid().to_numpy())
    if len(strangers):  # the model has one row for all of them, yet each is somebody of their own
        words = column.take(pa.array(strangers)).combine_chunks().dictionary_encode()
        drawn = np.array(
            [_negative_hash(word) for word in words.dictionary.cast(pa.large_binary()).to_pylist()], np.int64
        )
        groups[strangers] = drawn[words.indices.to_numpy()]
    return groups


def _negative_hash(word: bytes) -> int:
    """63 bits of BLAKE2 below 0, where no id of a vocabulary lies; Python's own hash differs between processes."""
    return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "big") // 2 - 2**63


def _lists(column: pa.ChunkedArray, feature: IdList, at: Place) -> Lists:
    """A null list is an empty one; a null inside a list is refused. Of lists of lists, see `one_list`."""
    column = one_list(column)
    if pa.types.is_null(column.type):
        column = column.cast(feature.arrow_type())
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64, copy=False)
    shape = Lists.of(np.empty(0, np.int32), lengths)
    lists = Lists(_ids(pc.list_flatten(column), feature, at, shape.offsets), shape.offsets)
    if not len(lengths) or lengths.max() <= feature.max_length:
        return lists
    if not isinstance(feature, IdSequence):
        row = first(lengths > feature.max_length)
        raise at.refuse(
            f"feature {feature.name!r} has {lengths[row]} values",
            row,
            f", more than its max_length={feature.max_length}. Raise max_length, or shorten the list",
        )
    kept = np.minimum(lengths, feature.max_length)
    return lists.cut(lists.offsets[1:] - kept, kept)


def _all_labels(table: pa.Table, schema: Schema, at: Place) -> NDArray[np.float32]:
    """[N] of one label, [N, L] of several."""
    labels = [_labels(table.column(label.name), label, at) for label in schema.labels]
    return labels[0] if len(labels) == 1 else np.stack(labels, axis=1)


def _labels(column: pa.ChunkedArray, label: Label, at: Place) -> NDArray[np.float32]:
    # A null becomes NaN.
    values: NDArray[np.float64] = plain(column, pa.float64()).cast(pa.float64()).to_numpy()
    number = label.kind == "number"
    wrong = ~_fits_float32(values) if number else (values != 0) & (values != 1)
    if label.optional and column.null_count:
        wrong &= ~pc.is_null(column).to_numpy()
    if wrong.any():
        row = first(wrong)
        got = "null" if pc.is_null(column)[row].as_py() else values[row]
        must = "a finite number that float32 can hold" if number else "0 or 1"
        raise at.refuse(f"label {label.name!r} is {got}", row, f"; it must be {must}")
    return values.astype(np.float32)


def _weights(column: pa.ChunkedArray, name: str, at: Place) -> NDArray[np.float32]:
    values: NDArray[np.float64] = plain(column, pa.float64()).cast(pa.float64()).to_numpy()
    wrong = ~_fits_float32(values) | (values < 0)
    if wrong.any():
        row = first(wrong)
        got = "null" if pc.is_null(column)[row].as_py() else values[row]
        raise at.refuse(f"weight {name!r} is {got}", row, "; it must be a finite number of at least 0")
    return values.astype(np.float32)


def _logits(column: pa.ChunkedArray, name: str, at: Place) -> NDArray[np.float32]:
    """A null becomes NaN."""
    column = plain(column, pa.float64())
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    wrong = ~_fits_float32(values) & column.is_valid().to_numpy()
    if wrong.any():
        row = first(wrong)
        raise at.refuse(f"teacher's logit {name!r} is {values[row]}", row, "; it must be a finite number, or null")
    return values.astype(np.float32)


def _fits_float32(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(values) <= np.finfo(np.float32).max
