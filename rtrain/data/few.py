"""Of a few rows, as of a request, the columns of one number or id each, read side by side.

A call of numpy or Arrow costs some microseconds whatever it is of, and a column that is read alone needs a dozen: of
one row and 39 columns that is more than the model takes. What does not fit is left to `data.encode`, which names it.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.schema import Schema

FEW = 64
"""Rows up to which it is worth it: of many, a column at a time stays in the cache."""


Numbers = Mapping[str, NDArray[np.float32]]
Ids = Mapping[str, NDArray[np.int32]]


def of_few(table: pa.Table, schema: Schema) -> tuple[Numbers, Ids]:
    """By the feature's name what `encode` makes of a column: of numbers, and of ids, [rows].

    Left out are numbers of which one is null, no number or too large, and all ids where one is null or out of range.

    Args:
        table: float64 and int64 columns, as `schema.arrow` has them.
    """
    batches = table.to_batches()
    if len(batches) != 1:
        return {}, {}
    return _numbers(batches[0], schema), _ids(batches[0], schema)


def _numbers(rows: pa.RecordBatch, schema: Schema) -> Numbers:
    features = schema.plain_numbers
    if not features:
        return {}
    raw = rows.select([f.name for f in features]).to_tensor(null_to_nan=True, row_major=False).to_numpy().T
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.stack([feature.scaled(values) for feature, values in zip(features, raw, strict=True)])
        values = scaled.astype(np.float32)
    fits = (np.isfinite(values) & np.isfinite(raw)).all(axis=1)
    return {feature.name: of for feature, of, fit in zip(features, values, fits, strict=True) if fit}


def _ids(rows: pa.RecordBatch, schema: Schema) -> Ids:
    features = schema.plain_ids
    if not features:
        return {}
    try:
        raw = rows.select([f.name for f in features]).to_tensor(row_major=False).to_numpy().T
    except pa.ArrowTypeError:  # a null
        return {}
    known = np.array([feature.table_rows for feature in features])
    if ((raw < 0) | (raw >= known[:, None])).any():
        return {}
    return dict(zip([f.name for f in features], raw.astype(np.int32), strict=True))
