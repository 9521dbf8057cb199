"""DCN-V2: cross layers beside or before an MLP (Wang et al., arXiv:2008.13535).

Shape legend: B rows, D dense features, V the dims of all features' vectors together, P = D + V.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rtrain.errors import ConfigError
from rtrain.models.ranking import RankingConfig, check_dropout, check_sizes
from rtrain.nn.cross import CrossLayer, CrossMixture
from rtrain.nn.interaction import mlp
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class DCNv2(RankingConfig):
    """Deep and cross network; its tables may have dims of their own."""

    layers: int = 3
    """Cross layers; layer n adds products of n + 1 features."""
    rank: int | None = 32
    """Rank of each cross layer's matrix; none: the whole matrix."""
    experts: int = 1
    """Low-rank experts that a softmax gate mixes in each cross layer; 1: one plain matrix, no gate."""
    deep: tuple[int, ...] = (64, 32)
    """Hidden sizes of the MLP."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Whether the MLP reads the input beside the cross layers, or what the cross layers give."""
    dropout: float = 0.0
    """Dropout after each hidden layer of the MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(deep=self.deep)
        check_dropout(self.dropout)
        if self.layers < 1 or self.experts < 1:
            raise ConfigError(
                f"model: layers and experts must be at least 1, got layers={self.layers}, experts={self.experts}"
            )
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"model.rank: must be at least 1, or none for the whole matrix, got {self.rank}")
        if self.rank is None and self.experts > 1:
            raise ConfigError(
                f"model.experts: {self.experts} experts are of low rank, but model.rank is none. Set model.rank"
            )
        if not self.deep and self.structure == "stacked":
            raise ConfigError("model.structure: stacked needs an MLP, but model.deep is empty. Give it hidden sizes")

    def dense_part(self, schema: Schema) -> nn.Module:
        """The cross layers, the MLP and the last linear layer."""
        return DCNv2Tower(self, width=sum(schema.dense_widths) + self.width(schema))


class DCNv2Tower(nn.Module):
    """(dense [B, D], vectors [B, V]) -> logits [B]."""

    def __init__(self, config: DCNv2, *, width: int):
        super().__init__()
        self.stacked = config.structure == "stacked"
        self.cross = nn.ModuleList(
            CrossMixture(width, config.rank, config.experts)
            if config.rank is not None and config.experts > 1
            else CrossLayer(width, config.rank)
            for _ in range(config.layers)
        )
        self.deep = mlp((width, *config.deep), dropout=config.dropout)
        deep_width = config.deep[-1] if config.deep else 0
        self.last = nn.Linear(deep_width if self.stacked else width + deep_width, 1)

    def forward(self, dense_BD: Tensor, vectors_BV: Tensor) -> Tensor:
        """Logits [B]."""
        x0_BP = crossed_BP = torch.cat([dense_BD, vectors_BV], dim=1)
        for layer in self.cross:
            crossed_BP = layer(x0_BP, crossed_BP)
        if self.stacked:
            top = self.deep(crossed_BP)
        elif len(self.deep):
            top = torch.cat([crossed_BP, self.deep(x0_BP)], dim=1)
        else:
            top = crossed_BP
        logits: Tensor = self.last(top).squeeze(1)
        return logits
