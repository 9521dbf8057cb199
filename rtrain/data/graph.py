"""The graph of who had what: users and items are its nodes, each interaction of training is an edge.

Shape legend: N nodes: the rows of the users' table, then those of the items'.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtrain.batch import Jagged
from rtrain.data.columns import Lists
from rtrain.nn.edges import EDGES

Ids = NDArray[np.int64]


class Graph:
    """What every batch of it carries: the edges, and the rows of both tables, dealt to the batch's rows."""

    def __init__(self, user: Ids, item: Ids, *, users: int, items: int):
        """`user`, `item`: the interactions of training, [edges]; `users`, `items`: rows of the tables."""
        self.users, self.items = users, items
        user, item = np.divmod(np.unique(user * items + item), items)  # what was had twice is one edge
        whole = adjacency(user, users + item, users + items)
        self.edges = dict(zip(EDGES, (whole.crow_indices(), whole.col_indices(), whole.values()), strict=True))
        """Its matrix, see `adjacency`."""

    @property
    def count(self) -> int:
        """Different interactions."""
        return len(self.edges[EDGES[1]]) // 2

    def pairs(self) -> tuple[Ids, Ids]:
        """The edges: user and item of each, [edges]."""
        first, other = (self.edges[name].numpy() for name in EDGES[:2])
        user = np.repeat(np.arange(self.users), np.diff(first[: self.users + 1]))
        item: Ids = other[: first[self.users]] - self.users
        return user, item

    def with_tables(self, ids: Jagged, rows: int) -> Jagged:
        """The ids of a batch of so many rows, and beside them, as `users` and `items`, all rows of both tables."""
        whole = [dealt(count, rows) for count in (self.users, self.items)] if rows else []
        values = [torch.from_numpy(lists.values) for lists in whole]
        lengths = [torch.from_numpy(lists.lengths.astype(np.int32)) for lists in whole]
        keys = (*ids.keys, "users", "items")
        return Jagged(keys, torch.cat([ids.values, *values]), torch.cat([ids.lengths, *lengths]))


def adjacency(one: Ids, other: Ids, nodes: int) -> Tensor:
    """float32 [N, N], sparse: of each edge, in both directions, 1 over the root of the product of its ends' degrees."""
    ends = torch.from_numpy(np.stack([np.concatenate([one, other]), np.concatenate([other, one])]))
    degrees = torch.bincount(ends[0], minlength=nodes).double()
    weights = (degrees[ends[0]] * degrees[ends[1]]).rsqrt().float()
    edges = torch.sparse_coo_tensor(ends, weights, (nodes, nodes), check_invariants=True).coalesce()
    return edges.to_sparse_csr()  # torch calls it a beta; it multiplies 5 times as fast as what it is made of


def dealt(count: int, rows: int) -> Lists:
    """0..count-1 in their order, over so many rows, of which none has two more than another."""
    return Lists.of(np.arange(count), np.full(rows, count // rows) + (np.arange(rows) < count % rows))
