"""LightGCN: vectors of users and items spread along the graph of who had what (He et al., arXiv:2002.02126).

Every step looks both tables up whole, on every rank, and spreads all vectors; the batch then takes its own. So data
ranks, wrappings and shardings train one and the same model (tensor ranks, stages and microbatches are refused), and it
is meant for tables that a worker holds easily: on MovieLens-100K (2,627 rows, 80,000 edges) a step takes twice as long
as matrix factorisation's. An evaluation spreads them anew in each of its batches, of which
there are two where `evaluation.batch` is as large as the catalogue and the users.

Shape legend: B rows, K negatives, N nodes of the graph (users, then items), M edges, E dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.models.retrieval import RetrievalConfig
from rtrain.nn.edges import EDGES, along
from rtrain.nn.tables import mask, sequence

MOST_ROWS = 200_000
"""Of both tables together, which each rank looks up in each step: 51 MB of vectors at 64 dims."""


@dataclass(frozen=True, kw_only=True)
class LightGCN(RetrievalConfig):
    """Two tables and no other weight; with `objective=BPR()` it is the paper's."""

    of_histories: ClassVar[bool] = False
    of_graph: ClassVar[bool] = True

    layers: int = 3
    """Steps that vectors are spread by; the mean of them all and of the tables' own is compared."""
    l2: float = 1e-4
    """Weight of half the squared lengths of a row's own vectors, before they are spread, beside its loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ConfigError(f"model.layers: must be at least 1, got {self.layers}; without any it is MF")
        if self.l2 < 0:
            raise ConfigError(f"model.l2: must be at least 0, got {self.l2}")

    def blueprint(self, facts: RetrievalFacts) -> Blueprint:
        """See `rtrain.models.protocol`.

        Raises:
            ConfigError: data of another kind, or tables too large to be looked up whole.
        """
        rows = facts.users + facts.items
        if rows > MOST_ROWS:
            raise ConfigError(
                f"data.users, data.items: LightGCN looks up all {rows:,} rows in each step, and is meant for "
                f"{MOST_ROWS:,} at most. Use MF or TwoTower, or fewer users and items"
            )
        tables = tuple(
            self._table(name, count, f"{name}s", sequences=(f"{name}s",))
            for name, count in (("user", facts.users), ("item", facts.items))
        )
        own = super().blueprint(facts)
        lengths = {**own.longest, "users": 0, "items": 0}  # as many as make the tables whole
        return replace(own, tables=tables, features=("users", "items"), longest=lengths)

    def reasons_against(self, parallel: Parallel, mesh: Mesh) -> Iterator[str]:
        """Beside those of every retrieval model, microbatches: each would spread all vectors again."""
        yield from super().reasons_against(parallel, mesh)
        if parallel.microbatches > 1:
            yield (
                f"parallel.microbatches: {parallel.microbatches}, but LightGCN spreads all vectors for the whole batch "
                "at once. Set it to 1"
            )

    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """One, without a weight."""
        whole = (sequence("users"), mask("users"), sequence("items"), mask("items"))
        tower = partial(LightGCNTower, self, facts.users)
        return (Piece(name="tower", build=tower, cost=0.0, takes=(*whole, *EDGES, "user", "item")),)


class LightGCNTower(nn.Module):
    """Gives [B, 1, E], [B, 1, 1 + K, E] and, in training, what the vectors' lengths cost, [B, 1]."""

    def __init__(self, config: LightGCN, users: int):
        super().__init__()
        self.layers, self.l2, self.users = config.layers, config.l2, users

    def forward(
        self,
        users_BTE: Tensor,
        real_users_BT: Tensor,
        items_BTE: Tensor,
        real_items_BT: Tensor,
        begin_N: Tensor,
        node_M: Tensor,
        weight_M: Tensor,
        user_B1: Tensor,
        item_BK: Tensor,
    ) -> tuple[Tensor, ...]:
        """Both tables, dealt to the rows of the batch; the graph, as `EDGES`; and which of their rows are asked for."""
        own_NE = torch.cat([users_BTE[real_users_BT], items_BTE[real_items_BT]])
        if not len(own_NE):  # a rank that has no row of a batch of evaluation
            own_NE = own_NE.new_zeros(len(begin_N) - 1, own_NE.shape[1])
        user_B, item_BK = user_B1[:, 0], item_BK + self.users
        mean_NE = spread((begin_N, node_M, weight_M), own_NE, self.layers)
        found = mean_NE[user_B].unsqueeze(1), mean_NE[item_BK].unsqueeze(1)
        if not self.training:
            return found
        squared_N = own_NE.square().sum(1)
        return *found, self.l2 / 2 * (squared_N[user_B] + squared_N[item_BK].sum(1)).unsqueeze(1)


def spread(edges: tuple[Tensor, Tensor, Tensor], own_NE: Tensor, layers: int) -> Tensor:
    """[N, E]: the mean of the vectors, and of what they are after one step along the graph, two, and so on.

    `edges`: as `rtrain.nn.edges.EDGES`.
    """
    total_NE = x_NE = own_NE
    for _ in range(layers):
        x_NE = along(*edges, x_NE)
        total_NE = total_NE + x_NE
    return total_NE / (1 + layers)
