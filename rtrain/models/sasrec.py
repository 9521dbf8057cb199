"""SASRec: causal self-attention over a user's items, scored against the same items (Kang & McAuley, arXiv:1808.09781).

Shape legend: B rows, T positions, E dim, H heads, D dim of a head.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rtrain.errors import ConfigError
from rtrain.models.history import HistoryConfig
from rtrain.models.plan import Piece
from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.sampled_binary import SampledBinary


@dataclass(frozen=True, kw_only=True)
class SASRec(HistoryConfig):
    """Blocks of attention and feed-forward layer before a norm; learned positions; the head is the items' own table."""

    hidden: int | None = None
    """Width of the feed-forward layer; none: `dim`, as in the paper."""
    dropout: float = 0.5
    """After the embedding, in attention and after each layer."""
    objective: CandidateLoss = SampledBinary()
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"model.hidden: must be at least 1, or none, got {self.hidden}")

    @property
    def width(self) -> int:
        """`hidden`, spelled out."""
        return self.hidden or self.dim

    def divided(self) -> dict[str, int]:
        """Heads, and the feed-forward layer."""
        return super().divided() | {"hidden": self.width}

    def block(self, longest: int) -> Piece:
        """See `HistoryConfig`."""
        return Piece(
            name="block",
            build=partial(SASRecBlock, self),
            cost=2.0 * (4 * self.dim * self.dim + 2 * self.dim * self.width),
            cuts={
                "attention.qkv.weight": "column",
                "attention.qkv.bias": "column",
                "attention.out.weight": "row",
                "mlp.up.weight": "column",
                "mlp.up.bias": "column",
                "mlp.down.weight": "row",
            },
            enter=("attention", "mlp"),
            leave=("attention.out", "mlp.down"),
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
    def width(self) -> int:
        """Of the feed-forward layer."""

    @property
    def dropout(self) -> float:
        """In attention and after each layer."""


class SASRecBlock(nn.Module):
    """[B, T, E] -> [B, T, E]: attention and feed-forward layer, each behind a norm and beside a residual."""

    def __init__(self, config: BlockSizes):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention, self.mlp = SelfAttention(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor, *seen_BT: Tensor) -> Tensor:
        """See `SelfAttention`."""
        x_BTE = x_BTE + self.dropout(self.attention(self.attention_norm(x_BTE), *seen_BT))
        out: Tensor = x_BTE + self.dropout(self.mlp(self.mlp_norm(x_BTE)))
        return out


class SelfAttention(nn.Module):
    """[B, T, E] -> [B, T, E], causal unless it is told what is seen.

    How many heads there are follows from the weight, of which a rank has a share.
    A head's queries, keys and values are consecutive outputs of `qkv`, so that a share of them is a share of the heads.
    """

    def __init__(self, config: BlockSizes):
        super().__init__()
        self.head_dim, self.rate = config.dim // config.heads, config.dropout
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)

    def forward(self, x_BTE: Tensor, seen_BT: Tensor | None = None) -> Tensor:
        """Each position sees itself and those before it, or those of `seen_BT` (bool), of which a row has some."""
        qkv_BHT3D = self.qkv(x_BTE).unflatten(-1, (-1, 3, self.head_dim)).transpose(1, 2)
        q_BHTD, k_BHTD, v_BHTD = qkv_BHT3D.unbind(3)
        rate = self.rate if self.training else 0.0
        mask_B11T = None if seen_BT is None else seen_BT[:, None, None]
        found_BHTD = scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BHTD, attn_mask=mask_B11T, is_causal=seen_BT is None, dropout_p=rate
        )
        out: Tensor = self.out(found_BHTD.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """One hidden layer, [B, T, E] -> [B, T, E]."""

    def __init__(self, config: BlockSizes):
        super().__init__()
        self.up, self.down = nn.Linear(config.dim, config.width), nn.Linear(config.width, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Position by position."""
        out: Tensor = self.down(self.dropout(torch.relu(self.up(x_BTE))))
        return out
