"""HSTU: gated, pointwise attention over items, with a bias of distance and time (Zhai et al., arXiv:2402.17152).

Attention weights are no softmax: how strong an interest is stays visible. They are divided by the longest history that
the data allow, not by the batch's, so that no row depends on those beside it.

Shape legend: B rows, T positions, E dim, H heads, D dim of a head.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from rtrain.errors import ConfigError
from rtrain.models.history import HistoryConfig
from rtrain.models.plan import Piece
from rtrain.models.retrieval import AnyObjective
from rtrain.objectives.candidates import SampledSoftmax

BUCKET = 0.301
"""Width of a bucket in the logarithm of seconds: each holds times up to 1.35 of the one before, as published."""


@dataclass(frozen=True, kw_only=True)
class HSTU(HistoryConfig):
    """Blocks of one gated attention each; the head is the items' own table."""

    buckets: int = 64
    """Time differences that are told apart; longer ones are all the last. 0: no bias of time."""
    dropout: float = 0.2
    """After the embedding and after each block's output."""
    objective: AnyObjective = SampledSoftmax()
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets < 0:
            raise ConfigError(f"model.buckets: must be at least 0, got {self.buckets}")

    def block(self, longest: int) -> Piece:
        """See `HistoryConfig`."""
        return Piece(
            name="block",
            build=partial(HSTUBlock, self, longest),
            cost=2.0 * 5 * self.dim * self.dim,
            takes=("times",),
            cuts={
                "attention.uvqk.weight": "column",
                "attention.uvqk.bias": "column",
                "attention.norm.weight": "column",
                "attention.norm.bias": "column",
                "attention.out.weight": "row",
            },
            enter=("attention",),
            leave=("attention.out",),
            norms=("attention.norm",),
        )


class HSTUBlock(nn.Module):
    """[B, T, E] and times [B, T] -> [B, T, E]: gated attention behind a norm and beside a residual."""

    def __init__(self, config: HSTU, longest: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(config.dim), GatedAttention(config, longest)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor, times_BT: Tensor) -> Tensor:
        """Each position sees itself and those before it."""
        out: Tensor = x_BTE + self.dropout(self.attention(self.norm(x_BTE), times_BT))
        return out


class GatedAttention(nn.Module):
    """[B, T, E] and times [B, T] -> [B, T, E]; how many heads there are follows from the weight.

    A head's gates, values, queries and keys are consecutive outputs of `uvqk`, so that a share of them is a share of
    the heads.
    """

    def __init__(self, config: HSTU, longest: int):
        super().__init__()
        self.head_dim, self.buckets, self.longest = config.dim // config.heads, config.buckets, longest
        self.uvqk, self.out = nn.Linear(config.dim, 4 * config.dim), nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.distance = nn.Parameter(torch.empty(longest).normal_(0.0, config.scale))
        if config.buckets:
            self.time = nn.Parameter(torch.empty(config.buckets).normal_(0.0, config.scale))

    def forward(self, x_BTE: Tensor, times_BT: Tensor) -> Tensor:
        """Each position sees itself and those before it."""
        uvqk_BHT4D = silu(self.uvqk(x_BTE)).unflatten(-1, (-1, 4, self.head_dim)).transpose(1, 2)
        u_BHTD, v_BHTD, q_BHTD, k_BHTD = uvqk_BHT4D.unbind(3)
        at_T = torch.arange(x_BTE.shape[1], device=x_BTE.device)
        back_TT = at_T.unsqueeze(1) - at_T
        bias = self.distance[back_TT.clamp(min=0)].unsqueeze(0)
        if self.buckets:
            bias = bias + self.time[self._bucket(times_BT)]
        weights_BHTT = silu(q_BHTD @ k_BHTD.transpose(2, 3) + bias.unsqueeze(1)) * (back_TT >= 0) / self.longest
        seen_BTE, gate_BTE = ((x.transpose(1, 2).flatten(2)) for x in (weights_BHTT @ v_BHTD, u_BHTD))
        out: Tensor = self.out(self.norm(seen_BTE) * gate_BTE)
        return out

    def _bucket(self, times_BT: Tensor) -> Tensor:
        """int64 [B, T, T]: of the time between a position and an earlier one."""
        past_BTT = times_BT.unsqueeze(2) - times_BT.unsqueeze(1)
        return (past_BTT.clamp(min=1).float().log() / BUCKET).long().clamp(max=self.buckets - 1)
