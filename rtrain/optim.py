"""Optimizer and schedule configs: one for the dense parameters, one for the embedding tables."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from rtrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor over a run: a linear warm-up, then a decay towards `floor`."""

    warmup_steps: int = 0
    """Steps over which the factor rises from 0 to 1."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the way from 1 to `floor` after the warm-up."""
    floor: float = 0.0
    """Factor that the decay has come down to when the run ends."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps: must be at least 0, got {self.warmup_steps}")
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"schedule.floor: must be in [0, 1], got {self.floor}")

    def factor(self, step: int, total_steps: int) -> float:
        """The factor for optimizer step `step` (counted from 0) of `total_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        shape = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.floor + (1 - self.floor) * shape


def _positive(where: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{where}: must be positive, got {value}")


def _not_negative(where: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{where}: must be at least 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW for the dense parameters (Loshchilov & Hutter, arXiv:1711.05101)."""

    lr: float = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay, per step times the learning rate."""
    clip_norm: float = 0.0
    """Largest global norm of the dense gradients; 0: no clipping."""
    schedule: Schedule = Schedule()
    """Factor on the learning rate over the run."""

    def __post_init__(self) -> None:
        _positive("optim.lr", self.lr)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas: each must be in [0, 1), got {self.betas}")
        _not_negative("optim.eps", self.eps)
        _not_negative("optim.weight_decay", self.weight_decay)
        if not self.clip_norm >= 0:
            raise ConfigError(f"optim.clip_norm: must be 0 (off) or positive, got {self.clip_norm}")

    def clip_factor(self, norm: float) -> float:
        """What gradients of a global norm are scaled by."""
        return min(1.0, self.clip_norm / (norm + 1e-6)) if self.clip_norm else 1.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """torch's AdamW over `parameters`."""
        held = list(parameters)
        return torch.optim.AdamW(
            held,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            # On a GPU all weights in one pass; torch's own choice makes one of each operation.
            fused=True if held and held[0].is_cuda else None,
        )


@dataclass(frozen=True, kw_only=True)
class SparseOptim:
    """What the tables' optimizers share; but for `l2` and all that `Adam` does, only touched rows are updated."""

    lr: float = 0.02
    """Learning rate after warm-up."""
    schedule: Schedule = Schedule()
    """Factor on the learning rate over the run."""
    clip_with_dense: bool = False
    """Whether the tables' gradients are scaled by the factor that `optim.clip_norm` scales the dense ones by."""
    l2: float = 0.0
    """Pull to 0 on every row of every table in every step, read or not, beside the gradient of the mean loss: l2 / 2 x
    the squares of the weights are added to it. As a Gaussian prior of standard deviation s it is 1 / (s^2 x training
    rows). Rows are caught up when they are read, evaluated or stored (`rtrain.parallel.shrinkage`)."""

    def __post_init__(self) -> None:
        _positive("sparse_optim.lr", self.lr)
        _not_negative("sparse_optim.l2", self.l2)


@dataclass(frozen=True, kw_only=True)
class RowWiseAdagrad(SparseOptim):
    """Adagrad with one accumulator a row: mean of the squared gradient over the row's dims."""

    eps: float = 1e-8
    """Added to the root of the accumulator; always passed on (fbgemm's own default differs from torch's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative("sparse_optim.eps", self.eps)


@dataclass(frozen=True, kw_only=True)
class Adagrad(SparseOptim):
    """Adagrad with one accumulator an element (Duchi et al., 2011)."""

    eps: float = 1e-8
    """Added to the root of the accumulator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative("sparse_optim.eps", self.eps)


@dataclass(frozen=True, kw_only=True)
class SGD(SparseOptim):
    """Plain gradient descent; no state."""


@dataclass(frozen=True, kw_only=True)
class Adam(SparseOptim):
    """Adam (Kingma & Ba, arXiv:1412.6980) on every row of every table in every step, read or not, as torch's is.

    A row that is not read goes on by its moments, so each step costs every row: for tables of up to some million rows
    a rank; for larger ones row-wise Adagrad. Beside each weight 12 bytes: two moments, and room for its gradient.
    """

    lr: float = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    l2: float = 0.0
    """Pull to 0: l2 x the weight is added to its gradient of the mean loss, before the moments and behind
    `clip_with_dense`. As a Gaussian prior of standard deviation s it is 1 / (s^2 x training rows)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"sparse_optim.betas: each must be in [0, 1), got {self.betas}")
        _not_negative("sparse_optim.eps", self.eps)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        """torch's Adam over `parameters`, in one pass over their memory."""
        return torch.optim.Adam(
            parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.l2, fused=True
        )
