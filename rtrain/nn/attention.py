"""Layers of a transformer. Shape legend: B rows, T tokens, E model dim, H heads, K key-value heads, D dim of a head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang & Sennrich, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        out: Tensor = self.weight * normed.to(x.dtype)
        return out


class Rotary:
    """Rotary position embedding (Su et al., arXiv:2104.09864), halves rotated as in Llama's published weights.

    Its tables are made at their first use on a device and belong to no module: they are no state.
    """

    def __init__(self, head_dim: int, theta: float):
        self.head_dim, self.theta = head_dim, theta
        self._tables: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, x_BHTD: Tensor) -> Tensor:
        """`x` with each token's vector turned by its position, which counts from 0."""
        cos_TD, sin_TD = self._table(x_BHTD)
        first, second = x_BHTD.chunk(2, dim=-1)
        return x_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD

    def _table(self, x_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        key = (x_BHTD.shape[2], x_BHTD.device, x_BHTD.dtype)
        if key not in self._tables:
            with torch.no_grad():
                at = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x_BHTD.device) / self.head_dim
                angle = torch.outer(torch.arange(key[0], device=x_BHTD.device).float(), self.theta**-at)
                both = torch.cat((angle, angle), dim=-1)
                self._tables[key] = (both.cos().to(x_BHTD.dtype), both.sin().to(x_BHTD.dtype))
        return self._tables[key]


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al., arXiv:2305.13245).

    The numbers of heads follow from the weights' shapes, so that a tensor rank that holds a share of
    the columns computes its share of the heads.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, *, theta: float, qkv_bias: bool):
        super().__init__()
        self.head_dim = dim // heads
        self.wq = nn.Linear(dim, heads * self.head_dim, bias=qkv_bias)
        self.wk = nn.Linear(dim, kv_heads * self.head_dim, bias=qkv_bias)
        self.wv = nn.Linear(dim, kv_heads * self.head_dim, bias=qkv_bias)
        self.wo = nn.Linear(heads * self.head_dim, dim, bias=False)
        self.rotary = Rotary(self.head_dim, theta)
        self.kv_chosen: Sequence[int] | None = None
        """Key-value heads that this rank's query heads use; none: all that it holds."""

    def forward(self, x_BTE: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E], each token seeing itself and those before it."""
        q_BHTD = self.rotary(self._heads(self.wq(x_BTE)))
        k_BKTD, v_BKTD = self._heads(self.wk(x_BTE)), self._heads(self.wv(x_BTE))
        if self.kv_chosen is not None:
            k_BKTD, v_BKTD = k_BKTD[:, self.kv_chosen], v_BKTD[:, self.kv_chosen]
        seen_BHTD = scaled_dot_product_attention(
            q_BHTD, self.rotary(k_BKTD), v_BKTD, is_causal=True, enable_gqa=q_BHTD.shape[1] != k_BKTD.shape[1]
        )
        out: Tensor = self.wo(seen_BHTD.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x_BTE: Tensor) -> Tensor:
        return x_BTE.view(*x_BTE.shape[:2], -1, self.head_dim).transpose(1, 2)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, arXiv:2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w_gate = nn.Linear(dim, hidden, bias=False)
        self.w_up = nn.Linear(dim, hidden, bias=False)
        self.w_down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        out: Tensor = self.w_down(silu(self.w_gate(x_BTE)) * self.w_up(x_BTE))
        return out
