"""HSTU as a ranker: the candidate is the last item of its row's history (Zhai et al., arXiv:2402.17152, section 2.2).

What the candidate sees of the history goes, beside the row's other features, through an MLP to one logit. The paper's
tokens of actions are not read: a schema's lists have none.

Shape legend: B rows, D dense features, V the dims of all single vectors together, T longest history, E dim of an item.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from rtrain.batch import times
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel
from rtrain.models.attending import AttendingConfig
from rtrain.models.hstu import HSTUBlock, block
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.models.ranking import check_dropout, check_sizes
from rtrain.nn.interaction import mlp
from rtrain.nn.tables import VECTORS, mask, sequence
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class HSTURanker(AttendingConfig):
    """Blocks of gated attention over a history and its candidate, then an MLP beside all other features."""

    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Attention heads of a block."""
    buckets: int = 0
    """Time differences that are told apart, as `HSTU.buckets`, of a history with times; the candidate is of its row's
    own moment. 0: no bias of time."""
    attention: Literal["jagged", "padded"] = "jagged"
    """As `HSTU.attention`."""
    top: tuple[int, ...] = (64, 32)
    """Hidden sizes of the MLP that gives the logit."""
    dropout: float = 0.0
    """After each block's output and each hidden layer of the MLP."""
    scale: float = 0.02
    """Standard deviation of the first biases of distance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(top=self.top)
        check_dropout(self.dropout)
        for name in ("layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        if self.buckets < 0:
            raise ConfigError(f"model.buckets: must be at least 0, got {self.buckets}")
        if not self.scale > 0:
            raise ConfigError(f"model.scale: must be positive, got {self.scale}")

    def blueprint(self, schema: Schema) -> Blueprint:
        """See `rtrain.models.protocol`."""
        return replace(super().blueprint(schema), against=self.reasons_against)

    def reasons_against(self, parallel: Parallel, mesh: Mesh) -> Iterator[str]:
        """Heads that tensor ranks do not divide."""
        if self.heads % parallel.tensor:
            yield (
                f"parallel.tensor: {parallel.tensor} does not divide model.heads, {self.heads}. "
                "Choose a degree that does, or change it"
            )

    def pieces(self, schema: Schema) -> tuple[Piece, ...]:
        """The candidate behind its history, blocks, and the MLP.

        Raises:
            ConfigError: a history of any length, whose dim the heads do not divide, or without times that the buckets
                ask for.
        """
        longest = self.longest(schema).get(self.history)
        if longest is None:
            raise ConfigError(
                f"schema: HSTURanker divides by the longest {self.history!r} that there may be. Give it a max_length"
            )
        if self.buckets and self.history not in [f.name for f in schema.timed]:
            raise ConfigError(
                f"model.buckets: HSTURanker tells {self.buckets} spans of time apart, but {self.history!r} has no "
                "times. Name their column (IdSequence.times), or set model.buckets to 0"
            )
        at = self.candidate_at(schema)
        dim = at.stop - at.start
        if dim % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide the dim of {self.history!r}, {dim}")
        read, real = sequence(self.history), mask(self.history)
        given = (real, times(self.history)) if self.buckets else (real,)
        one = block(partial(RankedBlock, OfDim(self, dim), longest + 1), dim, takes=given)
        width = sum(schema.dense_widths) + self.width(schema) + dim
        return (
            Piece(name="join", build=partial(Join, at), cost=0.0, takes=(read, real, VECTORS)),
            *(replace(one, name=f"blocks.{i}") for i in range(self.layers)),
            Piece(name="head", build=partial(RankedHead, self, dim, width), cost=0.0, takes=(real, "dense", VECTORS)),
        )


class OfDim:
    """What a block asks of a config, whose history may have a dim of its own."""

    def __init__(self, config: HSTURanker, dim: int):
        self.dim, self.heads, self.buckets, self.attention = dim, config.heads, config.buckets, config.attention
        self.dropout, self.scale = config.dropout, config.scale


class Join(nn.Module):
    """A history [B, T, E], where it is real, and single vectors [B, V] -> [B, T + 1, E], the candidate behind."""

    def __init__(self, candidate: slice):
        super().__init__()
        self.candidate = candidate

    def forward(self, history_BTE: Tensor, mask_BT: Tensor, vectors_BV: Tensor) -> Tensor:
        """Each row's candidate comes right after its last item; all as large as `HSTU` has them."""
        candidate_B1E = vectors_BV[:, self.candidate].unsqueeze(1)
        longer_BTE = torch.cat([history_BTE, torch.zeros_like(candidate_B1E)], dim=1)
        at_B11 = mask_BT.sum(1).view(-1, 1, 1)
        joined_BTE = longer_BTE.scatter(1, at_B11.expand_as(candidate_B1E), candidate_B1E)
        out: Tensor = joined_BTE * joined_BTE.shape[2] ** 0.5
        return out


class RankedBlock(HSTUBlock):
    """[B, T + 1, E], where the history is real [B, T], and with buckets how long ago [B, T] -> [B, T + 1, E]."""

    def forward(  # type: ignore[override]
        self, x_BTE: Tensor, mask_BT: Tensor, ago_BT: Tensor | None = None
    ) -> Tensor:
        """The candidate is real in every row, and 0 seconds ago, as what lies behind it is."""
        real_BT = torch.cat([mask_BT.new_ones(len(mask_BT), 1), mask_BT], dim=1)
        times_BT = torch.zeros_like(real_BT, dtype=torch.int64)
        if ago_BT is not None:
            times_BT[:, :-1] = -ago_BT
        return super().forward(x_BTE, times_BT, real_BT)


class RankedHead(nn.Module):
    """[B, T + 1, E], where the history is real, dense [B, D] and vectors [B, V] -> logits [B]."""

    def __init__(self, config: HSTURanker, dim: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.top = mlp((width, *config.top, 1), dropout=config.dropout, last_linear=True)

    def forward(self, x_BTE: Tensor, mask_BT: Tensor, dense_BD: Tensor, vectors_BV: Tensor) -> Tensor:
        """By what there is at the candidate's place."""
        at_B11 = mask_BT.sum(1).view(-1, 1, 1).expand(-1, 1, x_BTE.shape[2])
        interest_BE = self.norm(x_BTE.gather(1, at_B11).squeeze(1))
        logits: Tensor = self.top(torch.cat([dense_BD, vectors_BV, interest_BE], dim=1)).squeeze(1)
        return logits
