"""SASRec: causal self-attention over a user's items, scored against the same items (Kang & McAuley, arXiv:1808.09781).

Histories begin at position 0, so that what is not there lies behind what is, where causal attention never looks.

Shape legend: B rows, T positions, K negatives of a position, E dim, H heads, D dim of a head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rtrain.data.retrieval import RetrievalFacts
from rtrain.errors import ConfigError
from rtrain.models.ranking import check_dropout
from rtrain.models.retrieval import AnyObjective, RetrievalConfig
from rtrain.objectives.candidates import SampledBinary


@dataclass(frozen=True, kw_only=True)
class SASRec(RetrievalConfig):
    """Blocks of attention and feed-forward layer before a norm; learned positions; the head is the items' own table."""

    of_histories: ClassVar[bool] = True

    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Attention heads of a block."""
    hidden: int | None = None
    """Width of the feed-forward layer; none: `dim`, as in the paper."""
    dropout: float = 0.5
    """After the embedding, in attention and after each layer."""
    objective: AnyObjective = SampledBinary()
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide model.dim, {self.dim}")
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"model.hidden: must be at least 1, or none, got {self.hidden}")
        check_dropout(self.dropout)

    def tower(self, facts: RetrievalFacts) -> nn.Module:
        """Positions, blocks and a last norm."""
        assert facts.longest is not None, "`blueprint` refuses pairs"
        return SASRecTower(self, facts.longest)


class SASRecTower(nn.Module):
    """Items' vectors -> what each position asks for, beside its candidates."""

    def __init__(self, config: SASRec, longest: int):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(longest, config.dim).normal_(0.0, config.scale))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        times_BT: Tensor,
        none_B0: Tensor,
        history_BTE: Tensor,
        history_BT: Tensor,
        item_BNE: Tensor,
        item_BN: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Queries [B, T, E] and candidates [B, T, 1 + K, E]; `none_B0`: there is no single vector."""
        rows, length, dim = history_BTE.shape
        x_BTE = self.dropout(history_BTE * dim**0.5 + self.positions[:length])
        for block in self.blocks:
            x_BTE = block(x_BTE)
        offered = item_BNE.shape[1] // length  # of who only asks, nothing is offered
        return self.norm(x_BTE), item_BNE[:, : length * offered].view(rows, length, offered, dim)


class SASRecBlock(nn.Module):
    """[B, T, E] -> [B, T, E]: each position sees itself and those before it."""

    def __init__(self, config: SASRec):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        hidden = config.hidden or config.dim
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)
        self.up, self.down = nn.Linear(config.dim, hidden), nn.Linear(hidden, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Attention and feed-forward layer, each behind a norm and beside a residual."""
        q_BHTD, k_BHTD, v_BHTD = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x_BTE)).chunk(3, dim=-1)
        )
        rate = self.rate if self.training else 0.0
        seen_BHTD = scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, dropout_p=rate)
        x_BTE = x_BTE + self.dropout(self.out(seen_BHTD.transpose(1, 2).flatten(2)))
        hidden = self.dropout(torch.relu(self.up(self.mlp_norm(x_BTE))))
        out: Tensor = x_BTE + self.dropout(self.down(hidden))
        return out
