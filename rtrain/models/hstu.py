"""HSTU: gated, pointwise attention over items, with a bias of distance and time (Zhai et al., arXiv:2402.17152).

Attention weights are no softmax: how strong an interest is stays visible. They are divided by the longest history that
the data allow, not by the batch's, so that no row depends on those beside it.

Rows of unequal length are computed in groups of similar length (`nn.jagged`), or all as long as the longest one.

Shape legend: B rows, T positions, E dim, H heads, D dim of a head, G rows of a group, L positions of its longest, N
positions of all groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from rtrain.errors import ConfigError
from rtrain.models.history import BlockSizes, HistoryConfig
from rtrain.models.plan import Piece
from rtrain.nn.jagged import UnpackedLinear, grouped
from rtrain.nn.tables import mask
from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.sampled_softmax import SampledSoftmax

BUCKET = 0.301
"""Width of a bucket in the logarithm of seconds: each holds times up to 1.35 of the one before, as published."""


@dataclass(frozen=True, kw_only=True)
class HSTU(HistoryConfig):
    """Blocks of one gated attention each; the head is the items' own table."""

    buckets: int = 64
    """Time differences that are told apart; longer ones are all the last. 0: no bias of time."""
    dropout: float = 0.2
    """After the embedding and after each block's output."""
    objective: CandidateLoss = SampledSoftmax()
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets < 0:
            raise ConfigError(f"model.buckets: must be at least 0, got {self.buckets}")

    def check(self, data: Any) -> None:
        """Refuse data without times, whose places in the source would pass for seconds."""
        super().check(data)
        if self.buckets and not data.feedback.timed:
            raise ConfigError(
                f"model.buckets: HSTU tells {self.buckets} spans of time apart, but the data have no times. "
                "Name their column (data.time; a text file has none), or set model.buckets to 0"
            )

    def block(self, longest: int) -> Piece:
        """See `HistoryConfig`."""
        return block(partial(HSTUBlock, self, longest), self.dim, takes=("times", mask("history")))


class HSTUSizes(BlockSizes, Protocol):
    """What a block asks of a model's config."""

    @property
    def buckets(self) -> int:
        """Time differences that are told apart; 0: none."""

    @property
    def scale(self) -> float:
        """Standard deviation of the first biases of distance and time."""


def block(build: Callable[[], nn.Module], dim: int, *, takes: tuple[str, ...]) -> Piece:
    """An `HSTUBlock`, or a kind of it, as a piece: its heads are what tensor ranks divide."""
    return Piece(
        name="block",
        build=build,
        cost=2.0 * 5 * dim * dim,
        takes=takes,
        cuts={
            "attention.uvqk.weight": "column",
            "attention.uvqk.bias": "column",
            "attention.norm.weight": "column",
            "attention.norm.bias": "column",
            "attention.out.weight": "row",
        },
        enter=("attention",),
        leave=("attention.out.unpack",),
        norms=("attention.norm",),
    )


class HSTUBlock(nn.Module):
    """[B, T, E], times and where rows are real [B, T] -> [B, T, E]: norm and gated attention beside a residual."""

    def __init__(self, config: HSTUSizes, longest: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(config.dim), GatedAttention(config, longest)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: Tensor, times_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Each position sees itself and those before it; of what is not real, anything finite."""
        out: Tensor = x_BTE + self.dropout(self.attention(self.norm(x_BTE), times_BT, mask_BT))
        return out


class GatedAttention(nn.Module):
    """[B, T, E], times and where rows are real [B, T] -> [B, T, E]; the weight says how many heads there are.

    A head's gates, values, queries and keys are consecutive outputs of `uvqk`, so that a share of them is a share of
    the heads.
    """

    def __init__(self, config: HSTUSizes, longest: int):
        super().__init__()
        self.head_dim, self.buckets, self.longest = config.dim // config.heads, config.buckets, longest
        self.how = config.attention
        self.uvqk, self.out = nn.Linear(config.dim, 4 * config.dim), UnpackedLinear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.distance = nn.Parameter(torch.empty(longest).normal_(0.0, config.scale))
        if config.buckets:
            self.time = nn.Parameter(torch.empty(config.buckets).normal_(0.0, config.scale))

    def forward(self, x_BTE: Tensor, times_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Each position sees itself and those before it."""
        groups = grouped(mask_BT, self.how)
        uvqk_N4E = silu(self.uvqk(groups.pack(x_BTE)))
        times_N1 = groups.pack(times_BT.unsqueeze(2))
        pairs = zip(groups.split(uvqk_N4E), groups.split(times_N1), strict=True)
        seen_NE, gate_NE = (torch.cat(parts) for parts in zip(*(self._seen(*pair) for pair in pairs), strict=True))
        out: Tensor = self.out(self.norm(seen_NE) * gate_NE, groups)
        return out

    def _seen(self, uvqk_GL4E: Tensor, times_GL1: Tensor) -> tuple[Tensor, Tensor]:
        """What each position of a group gets to see, and its gate: [G * L, E] both."""
        uvqk_GHL4D = uvqk_GL4E.unflatten(-1, (-1, 4, self.head_dim)).transpose(1, 2)
        u_GHLD, v_GHLD, q_GHLD, k_GHLD = uvqk_GHL4D.unbind(3)
        at_L = torch.arange(uvqk_GL4E.shape[1], device=uvqk_GL4E.device)
        back_LL = at_L.unsqueeze(1) - at_L
        bias = self.distance[back_LL.clamp(min=0)].unsqueeze(0)
        if self.buckets:
            bias = bias + self.time[self._bucket(times_GL1)]
        share_LL = (back_LL >= 0).to(bias.dtype) / self.longest
        weights_GHLL = silu(q_GHLD @ k_GHLD.transpose(2, 3) + bias.unsqueeze(1)) * share_LL
        seen, gate = ((x.transpose(1, 2).flatten(2).flatten(0, 1)) for x in (weights_GHLL @ v_GHLD, u_GHLD))
        return seen, gate

    def _bucket(self, times_GL1: Tensor) -> Tensor:
        """int64 [G, L, L]: of the time between a position and an earlier one."""
        past_GLL = times_GL1 - times_GL1.transpose(1, 2)
        return (past_GLL.clamp(min=1).float().log() / BUCKET).long().clamp(max=self.buckets - 1)
