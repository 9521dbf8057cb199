"""What means of users and items alone say of labelled rows: the least that a model must beat."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.baseline import Baseline
from rtrain.data.split import Split
from rtrain.metrics.baseline import Means
from rtrain.metrics.state import Scored, Valued
from rtrain.schema import Id, Schema

MOST_ROWS = 5_000_000
"""Training rows beyond which they, computed in the driver's memory, are left out."""


def means_of(dataset: Any) -> tuple[Baseline, ...]:
    """Means of user and item, and of the item alone; none where the schema has no user and item, or has a label that
    rows may be without.

    `dataset`: a `rtrain.data.interactions.Dataset`.
    """
    schema = dataset.schema
    if not schema.group or not _item(schema) or schema.label.optional or dataset.rows("train") > MOST_ROWS:
        return ()
    both, one = (schema.group, _item(schema)), (_item(schema),)
    return (
        Baseline("user and item means alone", partial(of_means, dataset, by=both)),
        Baseline("item means alone", partial(of_means, dataset, by=one)),
    )


def of_means(dataset: Any, split: Split, *, by: tuple[str, ...]) -> Scored | Valued:
    """The split's rows, each as the mean of all and of what it has in the columns `by` in training."""
    schema = dataset.schema
    known, rows = dataset.rows("train"), np.array(dataset.numbers(split), np.int64)
    names = list(dict.fromkeys((schema.group, *by, schema.label.name)))
    both = pa.concat_tables([dataset.raw(s, 0, dataset.rows(s), names).select(names) for s in ("train", split)])
    users, *keys = (numbered(both[name]) for name in (schema.group, *by))
    labels = both[schema.label.name].cast(pa.float64()).to_numpy()
    means = Means.fit(labels[:known], *(key[:known] for key in keys))
    asked = [key[known:] for key in keys]
    if schema.predicts_numbers:
        return Valued(means.predict_numbers(*asked), labels[known:], users[known:], rows)
    scored = Scored.of_probabilities(means.predict(*asked), labels[known:], users[known:])
    return replace(scored, rows=rows)


def numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64 [n]: the same number for the same value, whatever its type; a null is a value too."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    codes = column.dictionary_encode(null_encoding="encode").combine_chunks().indices
    numbers: NDArray[np.int64] = codes.to_numpy().astype(np.int64)
    return numbers


def _item(schema: Schema) -> str:
    """The column of the item; empty where there is none."""
    return next((f.name for f in schema.ids if f.entity == "item" and type(f) is Id), "")
