"""Layers that mix feature vectors. Shape legend: B rows, N vectors a row, E dim of each."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int], *, dropout: float = 0.0, last_linear: bool = False) -> nn.Sequential:
    """Linear + ReLU (+ dropout) for each step of `sizes`; `last_linear` leaves the last without both."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(fan_in, fan_out))
        if last_linear and i == len(sizes) - 2:
            break
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class DotInteraction(nn.Module):
    """Dot product of every pair of vectors: [B, N, E] -> [B, N * (N - 1) / 2]."""

    def __init__(self, vectors: int):
        super().__init__()
        # Plain lists of indices become buffers that follow the module, and no part of a checkpoint.
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("flat", rows * vectors + columns, persistent=False)
        self.flat: Tensor

    def forward(self, x_BNE: Tensor) -> Tensor:
        """The strictly lower triangle of `x @ x.T`."""
        return torch.bmm(x_BNE, x_BNE.transpose(1, 2)).flatten(1).index_select(1, self.flat)
