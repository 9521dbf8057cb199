"""SASRec: causal self-attention over a user's items, scored against the same items (Kang & McAuley, arXiv:1808.09781).

Rows of unequal length are computed in groups of similar length (`nn.jagged`), or all as long as the longest one.

Shape legend: B rows, T positions, E dim, H heads, D dim of a head, G rows of a group, L positions of its longest, N
positions of all groups.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rtrain.errors import ConfigError
from rtrain.models.history import BlockSizes, HistoryConfig
from rtrain.models.plan import Piece
from rtrain.nn.jagged import UnpackedLinear, grouped
from rtrain.nn.tables import mask
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
            takes=(mask("history"),),
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
            leave=("attention.out.unpack", "mlp.down.unpack"),
        )


class SASRecSizes(BlockSizes, Protocol):
    """What a block asks of a model's config."""

    @property
    def width(self) -> int:
        """Of the feed-forward layer."""


class SASRecBlock(nn.Module):
    """[B, T, E] and where rows are real [B, T] -> [B, T, E]: attention and feed-forward layer, each behind a norm and
    beside a residual. Of what is not real, anything finite."""

    def __init__(self, config: SASRecSizes, *, causal: bool = True):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention, self.mlp = SelfAttention(config, causal=causal), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor, real_BT: Tensor) -> Tensor:
        """See `SelfAttention`."""
        x_BTE = x_BTE + self.dropout(self.attention(self.attention_norm(x_BTE), real_BT))
        out: Tensor = x_BTE + self.dropout(self.mlp(self.mlp_norm(x_BTE), real_BT))
        return out


class SelfAttention(nn.Module):
    """[B, T, E] and where rows are real [B, T] -> [B, T, E].

    How many heads there are follows from the weight, of which a rank has a share.
    A head's queries, keys and values are consecutive outputs of `qkv`, so that a share of them is a share of the heads.
    """

    def __init__(self, config: SASRecSizes, *, causal: bool):
        super().__init__()
        self.head_dim, self.rate, self.causal = config.dim // config.heads, config.dropout, causal
        self.how = config.attention
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), UnpackedLinear(config.dim, config.dim)

    def forward(self, x_BTE: Tensor, real_BT: Tensor) -> Tensor:
        """Each position sees itself and those before it; not causal: what is real, of which each row has some."""
        groups = grouped(real_BT, self.how)
        of_groups = groups.split(self.qkv(groups.pack(x_BTE)))
        masks = [None] * len(of_groups) if self.causal else groups.split(groups.pack(real_BT.unsqueeze(2)))
        seen_NE = torch.cat([self._seen(*pair) for pair in zip(of_groups, masks, strict=True)])
        out: Tensor = self.out(seen_NE, groups)
        return out

    def _seen(self, qkv_GL3E: Tensor, real_GL1: Tensor | None) -> Tensor:
        """What each position of a group gets to see, [G * L, E]."""
        q_GHLD, k_GHLD, v_GHLD = qkv_GL3E.unflatten(-1, (-1, 3, self.head_dim)).transpose(1, 2).unbind(3)
        found_GHLD = scaled_dot_product_attention(
            q_GHLD, k_GHLD, v_GHLD,
            attn_mask=None if real_GL1 is None else real_GL1.transpose(1, 2).unsqueeze(1),
            is_causal=self.causal, dropout_p=self.rate if self.training else 0.0,
        )  # fmt: skip
        return found_GHLD.transpose(1, 2).flatten(2).flatten(0, 1)


class FeedForward(nn.Module):
    """One hidden layer, position by position, [B, T, E] and where rows are real [B, T] -> [B, T, E]."""

    def __init__(self, config: SASRecSizes):
        super().__init__()
        self.how = config.attention
        self.up, self.down = nn.Linear(config.dim, config.width), UnpackedLinear(config.width, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor, real_BT: Tensor) -> Tensor:
        """The output's bias is also where nothing is real."""
        groups = grouped(real_BT, self.how)
        out: Tensor = self.down(self.dropout(torch.relu(self.up(groups.pack(x_BTE)))), groups)
        return out
