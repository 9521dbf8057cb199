"""Experts and the gates that mix them. Shape legend: B rows, I inputs, N experts, H outputs of an expert."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtrain.nn.interaction import mlp


class Experts(nn.Module):
    """MLPs of one shape over the same input: [B, I] -> [B, N, H]."""

    def __init__(self, experts: int, sizes: Sequence[int], *, dropout: float = 0.0):
        super().__init__()
        self.each = nn.ModuleList(mlp(sizes, dropout=dropout) for _ in range(experts))

    def forward(self, x_BI: Tensor) -> Tensor:
        """What each expert says."""
        return torch.stack([expert(x_BI) for expert in self.each], dim=1)


class Gate(nn.Module):
    """A softmax over experts, linear in the gate's own input: sum over n of softmax(W x)_n * expert_n."""

    def __init__(self, inputs: int, experts: int):
        super().__init__()
        self.scores = nn.Linear(inputs, experts, bias=False)

    def forward(self, x_BI: Tensor, experts_BNH: Tensor) -> Tensor:
        """[B, H]"""
        weights_BN = self.scores(x_BI).softmax(1)
        return torch.einsum("bn,bnh->bh", weights_BN, experts_BNH)
