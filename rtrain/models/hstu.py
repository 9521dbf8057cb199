"""HSTU: gated, pointwise attention over items, with a bias of distance and time (Zhai et al., arXiv:2402.17152).

Attention weights are no softmax: how strong an interest is stays visible. They are divided by the longest history that
the data allow, not by the batch's, so that no row depends on those beside it.

Shape legend: B rows, T positions, K negatives of a position, E dim, H heads, D dim of a head, G buckets of time.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from rtrain.data.retrieval import RetrievalFacts
from rtrain.errors import ConfigError
from rtrain.models.ranking import check_dropout
from rtrain.models.retrieval import AnyObjective, RetrievalConfig
from rtrain.objectives.candidates import SampledSoftmax

BUCKET = 0.301
"""Width of a bucket in the logarithm of seconds: each holds times up to 1.35 of the one before, as published."""


@dataclass(frozen=True, kw_only=True)
class HSTU(RetrievalConfig):
    """Blocks of one gated attention each; the head is the items' own table."""

    of_histories: ClassVar[bool] = True

    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Attention heads of a block."""
    buckets: int = 64
    """Time differences that are told apart; longer ones are all the last. 0: no bias of time."""
    dropout: float = 0.2
    """After the embedding and after each block's output."""
    objective: AnyObjective = SampledSoftmax()
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide model.dim, {self.dim}")
        if self.buckets < 0:
            raise ConfigError(f"model.buckets: must be at least 0, got {self.buckets}")
        check_dropout(self.dropout)

    def tower(self, facts: RetrievalFacts) -> nn.Module:
        """Blocks and a last norm."""
        assert facts.longest is not None, "`blueprint` refuses pairs"
        return HSTUTower(self, facts.longest)


class HSTUTower(nn.Module):
    """Items' vectors and times -> what each position asks for, beside its candidates."""

    def __init__(self, config: HSTU, longest: int):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(longest, config.dim).normal_(0.0, config.scale))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(HSTUBlock(config, longest) for _ in range(config.layers))
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
        past_BTT = times_BT.unsqueeze(2) - times_BT.unsqueeze(1)  # of a position and an earlier one: at least 0
        bucket_BTT = (past_BTT.clamp(min=1).double().log() / BUCKET).long()
        for block in self.blocks:
            x_BTE = block(x_BTE, bucket_BTT)
        offered = item_BNE.shape[1] // length  # of who only asks, nothing is offered
        return self.norm(x_BTE), item_BNE[:, : length * offered].view(rows, length, offered, dim)


class HSTUBlock(nn.Module):
    """[B, T, E] and the buckets of time [B, T, T] -> [B, T, E]: each position sees itself and those before it."""

    def __init__(self, config: HSTU, longest: int):
        super().__init__()
        self.heads, self.buckets, self.longest = config.heads, config.buckets, longest
        self.norm, self.gated_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.uvqk, self.out = nn.Linear(config.dim, 4 * config.dim), nn.Linear(config.dim, config.dim)
        self.distance = nn.Parameter(torch.empty(longest).normal_(0.0, config.scale))
        self.dropout = nn.Dropout(config.dropout)
        if config.buckets:
            self.time = nn.Parameter(torch.empty(config.buckets).normal_(0.0, config.scale))

    def forward(self, x_BTE: Tensor, bucket_BTT: Tensor) -> Tensor:
        """Gated attention behind a norm and beside a residual."""
        u_BTE, v_BTE, q_BTE, k_BTE = silu(self.uvqk(self.norm(x_BTE))).chunk(4, dim=-1)
        q_BHTD, k_BHTD, v_BHTD = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q_BTE, k_BTE, v_BTE)
        )
        at_T = torch.arange(x_BTE.shape[1], device=x_BTE.device)
        back_TT = at_T.unsqueeze(1) - at_T
        bias = self.distance[back_TT.clamp(min=0)].unsqueeze(0)
        if self.buckets:
            bias = bias + self.time[bucket_BTT.clamp(max=self.buckets - 1)]
        weights_BHTT = silu(q_BHTD @ k_BHTD.transpose(2, 3) + bias.unsqueeze(1)) * (back_TT >= 0) / self.longest
        seen_BTE = (weights_BHTT @ v_BHTD).transpose(1, 2).flatten(2)
        out: Tensor = x_BTE + self.dropout(self.out(self.gated_norm(seen_BTE) * u_BTE))
        return out
