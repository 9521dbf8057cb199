"""Batches of nothing, as large as those that data give: by them is counted what a step takes, before data are opened.

Shape legend: B rows, T positions of the longest row, K negatives of a position.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from rtrain.batch import Batch, Jagged
from rtrain.data.negatives import Negatives
from rtrain.data.protocol import NotCounted
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.nn.edges import EDGES
from rtrain.rounding import ceil_div
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


def blank_rows(schema: Schema, rows: int, global_rows: int) -> Batch:
    """As `Interactions` gives them, with every list at its longest."""
    lengths = {f.name: _length(f) if isinstance(f, Many) else 1 for f in schema.ids}
    labels = len(schema.labels)
    return Batch(
        dense=torch.zeros(rows, sum(schema.dense_widths)),
        ids=_ids(lengths, rows, weighted=bool(schema.weighted)),
        label=torch.zeros((rows, labels) if labels > 1 else (rows,)),
        group=torch.zeros(rows, dtype=torch.int64),
        row=torch.arange(rows),
        global_rows=global_rows,
        weight=torch.ones(rows) if schema.weight else None,
        teacher=torch.zeros(rows) if schema.teacher else None,
        times={f.name: torch.zeros(rows, lengths[f.name], dtype=torch.int64) for f in schema.timed},
    )


def blank_positives(
    rows: int,
    global_rows: int,
    *,
    items: int,
    positions: int | None,
    negatives: Negatives,
    side: Mapping[str, Mapping[str, int]],
) -> RetrievalBatch:
    """As `Pairs` (`positions` is none) and `Histories` give them, of a catalogue of at most so many `items`.

    `side`: of "user" and "item", feature -> the most ids that one has of it. Of what a user had it is an upper bound:
    somebody had all the items of the global batch, which are at most its positions and at most the catalogue.
    Of full batches: where the whole catalogue is dealt to fewer rows, each has a few more of it.

    Raises:
        NotCounted: histories to whose positions the whole catalogue is dealt.
    """
    count = positions or 1
    drawn = negatives.count
    if negatives.by == "all":
        if positions is not None:
            raise NotCounted(
                "data.negatives.by: 'all' deals every item to the positions of a batch, and how many histories have, "
                "only open data tell"
            )
        drawn = ceil_div(items, global_rows)
    facts = 2 + (drawn if negatives.by != "uniform" or negatives.known else 0)
    if negatives.tells_known:
        facts += ceil_div(min(global_rows * count, items), count)
    offered = count * (1 + drawn)
    asked = {"user": 1} if positions is None else {"history": count}
    of_items = {name: offered * most for name, most in side.get("item", {}).items()}
    return RetrievalBatch(
        ids=_ids(asked | {"item": offered} | dict(side.get("user", {})) | of_items, rows),
        target=torch.zeros(rows, count, facts, dtype=torch.int64),
        row=torch.arange(rows),
        last=torch.full((rows,), count - 1),
        global_rows=global_rows,
        units=global_rows * count,
        times=None if positions is None else torch.zeros(rows, count, dtype=torch.int64),
        places={
            name: torch.arange(offered).repeat_interleave(most).repeat(rows, 1)
            for name, most in side.get("item", {}).items()
        },
    )


def blank_edges(batch: RetrievalBatch, users: int, items: int, edges: int) -> RetrievalBatch:
    """The batch with a graph of so many edges, and with the tables that it lies between, evenly dealt to its rows.

    Where rows do not divide them the tables have a few nodes more.
    """
    whole = {"users": ceil_div(users, batch.rows), "items": ceil_div(items, batch.rows)}
    lengths = {"user": 1, "item": batch.ids.longest["item"]} | whole
    nodes = batch.rows * sum(whole.values())
    begin, node, weight = EDGES
    return replace(
        batch,
        ids=_ids(lengths, batch.rows),
        graph={
            begin: torch.zeros(nodes + 1, dtype=torch.int64),
            node: torch.zeros(2 * edges, dtype=torch.int64),
            weight: torch.zeros(2 * edges),
        },
    )
