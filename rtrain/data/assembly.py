"""What is asked of a retrieval model as a batch: whom, their histories, and candidates, with all that is known of them.

Shape legend: B rows, T positions of the longest history.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from rtrain.batch import Jagged
from rtrain.data.columns import Lists
from rtrain.data.graph import Graph
from rtrain.data.retrieval_batch import Ids, RetrievalBatch, places
from rtrain.data.side import looked_up
from rtrain.nn.edges import EDGES


@dataclass(frozen=True)
class Assembly:
    """What every batch of a data set, or of an export, is put together with."""

    longest: int | None
    """Positions of a history; none: a row is of one user."""
    side: Mapping[str, Mapping[str, Lists]] = field(default_factory=dict)
    """Of "user" and "item", feature -> what it says of each id."""
    graph: Graph | None = None
    """Where batches carry the graph of training."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of `RetrievalBatch.inputs`."""
        if self.graph:
            return (*EDGES, "user", "item")
        of_items = self.side.get("item", {})
        beside = ("times",) if self.longest is not None else ()
        return (*beside, *(("item", *map(places, of_items)) if of_items else ()))

    def batch(self, context: Lists, candidates: Lists, numbers: Ids, times: Lists | None = None) -> RetrievalBatch:
        """`context`: of each row its user, or its history, with `times`; `numbers`: the samples', [B]."""
        rows = len(numbers)
        when = None
        if self.longest is not None:
            when = torch.zeros(rows, max(1, int(context.lengths.max(initial=0))), dtype=torch.int64)
            if times is not None:
                there = torch.arange(when.shape[1]) < torch.from_numpy(times.lengths).unsqueeze(1)
                when[there] = torch.from_numpy(times.values)
        both = np.concatenate([context.lengths, candidates.lengths]).astype(np.int32)
        values = np.concatenate([context.values, candidates.values]).astype(np.int64)
        asked = {"user" if self.longest is None else "history": context, "item": candidates}
        found = {
            name: looked_up(lists, asked[of]) for of, features in self.side.items() for name, lists in features.items()
        }
        values = np.concatenate([values, *(x.values for x in found.values())])
        both = np.concatenate([both, *(x.lengths for x in found.values())])
        ids = Jagged((*asked, *found), torch.from_numpy(values), torch.from_numpy(both))
        return RetrievalBatch(
            ids=self.graph.with_tables(ids, rows) if self.graph else ids,
            target=torch.full((rows, 1, 2), -1),
            row=torch.from_numpy(numbers.astype(np.int64)),
            last=torch.from_numpy(np.maximum(context.lengths - 1, 0)),
            times=when,
            places={name: torch.from_numpy(found[name].place) for name in self.side.get("item", {})},
            graph=self.graph.edges if self.graph else None,
            global_rows=rows,
            units=rows,
        )

    def of_items(self, items: Ids) -> RetrievalBatch:
        """Each item as the one candidate of a row, so that the model gives its vector."""
        nothing = Lists.of(items[:0], np.zeros(len(items), np.int64))
        return self.batch(nothing, Lists.of(items, np.ones(len(items), np.int64)), np.full(len(items), -1))

    def of_whom(self, context: Lists, numbers: Ids, times: Lists | None = None) -> RetrievalBatch:
        """Whom items are to be found for, without candidates."""
        return self.batch(context, Lists.of(context.values[:0], np.zeros(len(numbers), np.int64)), numbers, times)
