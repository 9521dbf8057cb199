"""What user and item means alone say of labelled rows: the least that a model must beat."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.split import Split
from rtrain.metrics.baseline import UserItemBias
from rtrain.metrics.state import Scored, Valued
from rtrain.schema import Id

MOST_ROWS = 5_000_000
"""Training rows beyond which they, computed in the driver's memory, are left out."""


def of_means(dataset: Any, split: Split) -> Scored | Valued | None:
    """The split's rows; none where the schema has no user and item, or a label that rows may be without.

    `dataset`: a `rtrain.data.interactions.Dataset`.
    """
    schema = dataset.schema
    items = [f.name for f in schema.ids if f.entity == "item" and type(f) is Id]
    if not schema.group or not items or schema.label.optional or dataset.rows("train") > MOST_ROWS:
        return None
    names = [schema.group, items[0], schema.label.name]
    known, rows = dataset.rows("train"), np.array(dataset.numbers(split), np.int64)
    both = pa.concat_tables([dataset.raw(s, 0, dataset.rows(s)).select(names) for s in ("train", split)])
    users, item_ids = (_numbered(both[name]) for name in names[:2])
    labels = both[names[2]].cast(pa.float64()).to_numpy()
    bias = UserItemBias.fit(users[:known], item_ids[:known], labels[:known])
    if schema.predicts_numbers:
        numbers = bias.predict_numbers(users[known:], item_ids[known:])
        return Valued(numbers, labels[known:], users[known:], rows)
    scores = bias.predict(users[known:], item_ids[known:])
    return replace(Scored.of_probabilities(scores, labels[known:], users[known:]), rows=rows)


def _numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64 [n]: the same number for the same value, whatever its type; a null is a value too."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    codes = column.dictionary_encode(null_encoding="encode").combine_chunks().indices
    numbers: NDArray[np.int64] = codes.to_numpy().astype(np.int64)
    return numbers
