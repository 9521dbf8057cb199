"""Columns of texts -> the ids of their words or tokens, each different text once."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rtrain.data.columns import Lists
from rtrain.data.place import plain
from rtrain.data.words import Words
from rtrain.text import Text


def text_ids(column: pa.ChunkedArray, feature: Text) -> Lists:
    """Of each row the ids of its first `max_length` words or tokens; of a null none."""
    column = plain(column, pa.string())
    if feature.tokenizer is None:
        ids = Words(name=feature.name, rows=feature.rows, longest=feature.max_length).read(column, feature.name)
        return Lists.of(pc.list_flatten(ids).to_numpy(), pc.list_value_length(ids).to_numpy())
    encoded = column.combine_chunks().dictionary_encode()
    tokenizer = feature.tokenizer.opened()
    once = [
        one.ids[: feature.max_length]
        for one in tokenizer.encode_batch(encoded.dictionary.to_pylist(), add_special_tokens=False)
    ]
    once.append([])  # a null's
    flat = np.array([token for ids in once for token in ids], np.int64)
    lists = Lists.of(flat, np.array([len(ids) for ids in once], np.int64))
    return lists.select(encoded.indices.fill_null(len(once) - 1).cast(pa.int64()).to_numpy())
