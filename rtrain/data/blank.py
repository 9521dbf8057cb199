"""Batches of nothing, as large as those that data give: by them is counted what a step takes, before data are opened.

Shape legend: B rows, T positions of the longest row, K negatives of a position.
"""

import math

import numpy as np
import torch

from rtrain.batch import Batch, Jagged
from rtrain.data.negatives import Negatives
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.schema import ANY_LENGTH, Many, Schema


def _ids(lengths: dict[str, int], rows: int, *, weighted: bool = False) -> Jagged:
    """As many ids of each feature in every row."""
    count = rows * sum(lengths.values())
    return Jagged(
        keys=tuple(lengths),
        values=torch.zeros(count, dtype=torch.int64),
        lengths=torch.cat([torch.full((rows,), length, dtype=torch.int32) for length in lengths.values()]),
        weights=torch.ones(count) if weighted else None,
        host=np.repeat(np.array(list(lengths.values()), np.int32), rows),  # tensors of no numbers cannot be read
    )


def _length(of: Many) -> int:
    """The longest list; where that is not stated, one of mean length, and else of one id."""
    return of.max_length if of.max_length < ANY_LENGTH else math.ceil(of.mean_length or 1)


def blank_rows(schema: Schema, rows: int) -> Batch:
    """As `Interactions` gives them, with every list at its longest."""
    lengths = {f.name: _length(f) if isinstance(f, Many) else 1 for f in schema.ids}
    labels = len(schema.labels)
    return Batch(
        dense=torch.zeros(rows, sum(schema.dense_widths)),
        ids=_ids(lengths, rows, weighted=bool(schema.weighted)),
        label=torch.zeros((rows, labels) if labels > 1 else (rows,)),
        group=torch.zeros(rows, dtype=torch.int64),
        row=torch.arange(rows),
        global_rows=rows,
        weight=torch.ones(rows) if schema.weight else None,
        teacher=torch.zeros(rows) if schema.teacher else None,
        times={f.name: torch.zeros(rows, lengths[f.name], dtype=torch.int64) for f in schema.timed},
    )


def blank_positives(rows: int, positions: int | None, negatives: Negatives) -> RetrievalBatch:
    """As `Pairs` (`positions` is none) and `Histories` give them where nothing is known beside ids.

    Negatives are drawn, by the items' popularity or not, and batches do not tell what was known: how much that would
    be, only open data say.
    """
    count = positions or 1
    facts = 2 + (negatives.count if negatives.by == "popularity" else 0)
    asked = {"user": 1} if positions is None else {"history": count}
    return RetrievalBatch(
        ids=_ids(asked | {"item": count * (1 + negatives.count)}, rows),
        target=torch.zeros(rows, count, facts, dtype=torch.int64),
        row=torch.arange(rows),
        last=torch.full((rows,), count - 1),
        global_rows=rows,
        units=rows * count,
        times=None if positions is None else torch.zeros(rows, count, dtype=torch.int64),
    )
