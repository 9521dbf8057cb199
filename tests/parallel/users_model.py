"""A model of one's own, in one file: its own loss, its tables, and blocks that are cut over tensor ranks and stages."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus, tanh

from rtrain import VECTORS, Piece, Pointwise, RankingConfig, Schema


class Squared(Pointwise):
    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (softplus(logits) - labels.nan_to_num() * logits).square().where(labels == labels, 0.0)


class Block(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, out)

    def forward(self, *given: Tensor) -> Tensor:
        return self.down(tanh(self.up(torch.cat(given, dim=1)))).squeeze(1)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Blocks(RankingConfig):
    def objective(self, schema: Schema) -> Pointwise:
        return Squared()

    def pieces(self, schema: Schema) -> tuple[Piece, ...]:
        cuts = {"up.weight": "column", "up.bias": "column", "down.weight": "row"}
        block = partial(Piece, cost=1.0, cuts=cuts, enter=("",), leave=("down",))
        shapes = pairwise((sum(schema.dense_widths), 8, 8, 8, 1))
        builds = [partial(Block, given + self.width(schema), gives) for given, gives in shapes]
        takes = [("dense", VECTORS)] + [(VECTORS,)] * 3
        return tuple(block(name=f"blocks.{i}", build=builds[i], takes=takes[i]) for i in range(4))
