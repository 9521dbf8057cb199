"""Cross layers: explicit products of features of growing degree (Wang et al., arXiv:2008.13535).

Shape legend: B rows, P input width, R rank, K experts.
"""

import torch
from torch import Tensor, nn


class CrossLayer(nn.Module):
    """x0 * (W x + b) + x, with W whole (equation 1 of the paper) or U V^T of a low rank (equation 2)."""

    def __init__(self, width: int, rank: int | None):
        super().__init__()
        self.weight: nn.Module
        if rank is None:
            self.weight = nn.Linear(width, width)
        else:
            self.weight = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

    def forward(self, x0_BP: Tensor, x_BP: Tensor) -> Tensor:
        """[B, P]"""
        crossed: Tensor = x0_BP * self.weight(x_BP) + x_BP
        return crossed


class CrossMixture(nn.Module):
    """sum over k of G_k(x) * (x0 * (U_k tanh(C_k tanh(V_k^T x)) + b)) + x (equations 3 and 4), G a softmax gate."""

    def __init__(self, width: int, rank: int, experts: int):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(experts))
        self.core = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(experts))
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in range(experts))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, experts, bias=False)

    def forward(self, x0_BP: Tensor, x_BP: Tensor) -> Tensor:
        """[B, P]"""
        gates_BK = self.gate(x_BP).softmax(1)
        mixed = torch.zeros_like(x_BP)
        for k, (down, core, up) in enumerate(zip(self.down, self.core, self.up, strict=True)):
            expert_BP = up(core(down(x_BP).tanh()).tanh()) + self.bias
            mixed = mixed + gates_BK[:, k : k + 1] * expert_BP
        return x0_BP * mixed + x_BP
