"""Which linear layer a run's workers have: DeepSpeed's stage 3 puts one of its own in the place of torch's.

That is for the whole process and for good, so whoever counts what a layout keeps says which of the two it means. Under
autocast its own keeps less: what it is given, where torch's keeps a copy of 16 bits of the weight, and one of the input
for each layer that reads it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rtrain.mesh import Parallel


@contextmanager
def linear_of(parallel: Parallel) -> Iterator[None]:
    """Inside, `torch.nn.functional.linear` keeps for backward what it keeps in workers of this layout; forward only."""
    found = functional.linear
    functional.linear = _kept_as_given if parallel.dense == "zero" and parallel.zero_stage == 3 else torch._C._nn.linear
    try:
        yield
    finally:
        functional.linear = found


class _AsDeepSpeed(torch.autograd.Function):
    """Of `deepspeed.runtime.zero.linear.LinearFunctionForZeroStage3` what it keeps; importing that takes seconds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch._C._nn.linear(x, weight, bias)


def _kept_as_given(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = _AsDeepSpeed.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return out
