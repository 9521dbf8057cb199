"""DIN: the history is summed with weights that depend on the candidate (Zhou et al., arXiv:1706.06978).

Of the paper's two activations this is PReLU: Dice takes the mean and variance of the mini-batch, which would
be of one rank's rows only, so that another world size would train another model.

Shape legend: B rows, D dense features, V the dims of all single vectors together, T longest history, E embedding dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from rtrain.models.attending import AttendingConfig
from rtrain.models.ranking import check_dropout, check_sizes
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class DIN(AttendingConfig):
    """Deep interest network: attention of one candidate feature over one list feature of the same dim."""

    attention: tuple[int, ...] = (32, 16)
    """Hidden sizes of the unit that weighs one item of the history."""
    top: tuple[int, ...] = (64, 32)
    """Hidden sizes of the MLP that gives the logit."""
    dropout: float = 0.0
    """Dropout after each hidden layer of the top MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(attention=self.attention, top=self.top)
        check_dropout(self.dropout)

    def dense_part(self, schema: Schema) -> nn.Module:
        """The activation unit and the top MLP."""
        candidate = self.candidate_at(schema)
        return DINTower(self, width=sum(schema.dense_widths) + self.width(schema), candidate=candidate)


class DINTower(nn.Module):
    """(dense [B, D], vectors [B, V], history [B, T, E], mask [B, T]) -> logits [B]."""

    def __init__(self, config: DIN, *, width: int, candidate: slice):
        super().__init__()
        self.candidate = candidate
        dim = candidate.stop - candidate.start
        self.attention = prelu_mlp((4 * dim, *config.attention, 1))
        self.top = prelu_mlp((width + dim, *config.top, 1), dropout=config.dropout)

    def forward(self, dense_BD: Tensor, vectors_BV: Tensor, history_BTE: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits [B]."""
        candidate_BTE = vectors_BV[:, self.candidate].unsqueeze(1).expand_as(history_BTE)
        compared = [candidate_BTE, history_BTE, candidate_BTE - history_BTE, candidate_BTE * history_BTE]
        weights_BT = self.attention(torch.cat(compared, dim=2)).squeeze(2) * mask_BT
        # No softmax over the history: the paper keeps the strength of the interest.
        interest_BE = (weights_BT.unsqueeze(2) * history_BTE).sum(1)
        logits: Tensor = self.top(torch.cat([dense_BD, vectors_BV, interest_BE], dim=1)).squeeze(1)
        return logits


def prelu_mlp(sizes: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Linear + PReLU (+ dropout) for each step of `sizes`; the last is linear alone."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.PReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
