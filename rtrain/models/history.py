"""What models of users' histories share: blocks of attention between learned positions and the items' own table.

Histories begin at position 0, so that what is not there lies behind what is, where causal attention never looks.

Shape legend: B rows, T positions, K negatives of a position, E dim.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel
from rtrain.models.plan import Piece
from rtrain.models.ranking import check_dropout
from rtrain.models.retrieval import RetrievalConfig
from rtrain.nn.tables import sequence


@dataclass(frozen=True, kw_only=True)
class HistoryConfig(RetrievalConfig):
    """Config of such a model."""

    of_histories: ClassVar[bool] = True

    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Attention heads of a block."""
    dropout: float = 0.2
    """After the embedding and within each block."""
    attention: Literal["jagged", "padded"] = "jagged"
    """jagged: blocks compute in groups of rows of similar length; padded: in one, all rows as long as the batch's
    longest. Both learn the same, but for the rounding of sums in another order, and dropout inside that draws for other
    positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide model.dim, {self.dim}")
        check_dropout(self.dropout)

    @abstractmethod
    def block(self, longest: int) -> Piece:
        """[B, T, E] -> [B, T, E]; `longest`: positions of the longest history that the data allow."""

    def divided(self) -> dict[str, int]:
        """What tensor ranks divide: field -> size."""
        return {"heads": self.heads}

    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """Positions, blocks, and a last norm beside the candidates."""
        assert facts.longest is not None, "`blueprint` refuses pairs"
        block = self.block(facts.longest)
        return (
            Piece(name="embed", build=partial(Embed, self, facts.longest), cost=0.0, takes=(sequence("history"),)),
            *(replace(block, name=f"blocks.{i}") for i in range(self.layers)),
            Piece(name="head", build=partial(Head, self.dim), cost=0.0, takes=(sequence("item"),)),
        )

    def reasons_against(self, parallel: Parallel, mesh: Mesh) -> Iterator[str]:
        """Beside those of every retrieval model, sizes that tensor ranks do not divide."""
        yield from super().reasons_against(parallel, mesh)
        for name, size in self.divided().items():
            if size % parallel.tensor:
                yield (
                    f"parallel.tensor: {parallel.tensor} does not divide model.{name}, {size}. "
                    "Choose a degree that does, or change it"
                )


class BlockSizes(Protocol):
    """What a block asks of a model's config."""

    @property
    def dim(self) -> int:
        """E"""

    @property
    def heads(self) -> int:
        """H"""

    @property
    def dropout(self) -> float:
        """See `HistoryConfig`."""

    @property
    def attention(self) -> Literal["jagged", "padded"]:
        """See `HistoryConfig`."""


class Embed(nn.Module):
    """A history's vectors [B, T, E] -> with learned positions, [B, T, E]."""

    def __init__(self, config: HistoryConfig, longest: int):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(longest, config.dim).normal_(0.0, config.scale))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, history_BTE: Tensor) -> Tensor:
        """Positions count from the oldest item."""
        _, length, dim = history_BTE.shape
        out: Tensor = self.dropout(history_BTE * dim**0.5 + self.positions[:length])
        return out


class Head(nn.Module):
    """What each position asks for, beside its candidates: [B, T, E] and [B, T * (1 + K), E]."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BTE: Tensor, item_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, T, E] and candidates [B, T, 1 + K, E]."""
        rows, length, dim = x_BTE.shape
        offered = item_BNE.shape[1] // length  # of who only asks, nothing is offered
        return self.norm(x_BTE), item_BNE[:, : length * offered].view(rows, length, offered, dim)
