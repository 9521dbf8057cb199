"""Weights of which most are zero, as an export has them: a bit for each, and the others.

NAME.kept      uint8 [ceil(n / 8)]   of each weight in its order, 8 in a byte, the first of them the high bit
NAME.values    [kept]                those that are not zero, in their order
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rtrain.errors import CheckpointError
from rtrain.rounding import ceil_div

KEPT, VALUES = ".kept", ".values"


def pruned(x: Tensor, share: float) -> Tensor:
    """The same with zeros where its magnitudes are least, so many of all: of equal ones the first go."""
    gone = x.abs().flatten().argsort(stable=True)[: int(share * x.numel())]
    return x.flatten().index_fill(0, gone, 0.0).view(x.shape)


def packed(name: str, x: Tensor) -> dict[str, Tensor]:
    """By name what an export has of it."""
    there = x.flatten() != 0
    return {name + KEPT: torch.from_numpy(np.packbits(there.numpy())), name + VALUES: x.flatten()[there]}


def unpacked(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """All weights by their own names; `shapes`: of those that the model has, which may be called `kept` or `values`.

    Raises:
        CheckpointError: one that the model has not, or whose values are other than the bits say.
    """
    sparse = {name.removesuffix(KEPT) for name in weights if name.endswith(KEPT) and name not in shapes}
    found = {name: x for name, x in weights.items() if name.rpartition(".")[0] not in sparse or name in shapes}
    for name in sorted(sparse):
        if name not in shapes or name + VALUES not in weights:
            raise CheckpointError(f"export: {name} is no weight of its model, or has no values. Export the run again")
        shape, values = shapes[name], weights[name + VALUES]
        if len(weights[name + KEPT]) != ceil_div(shape.numel(), 8):
            raise CheckpointError(f"export: {name} has bits of another shape than {tuple(shape)}. Export the run again")
        there = torch.from_numpy(np.unpackbits(weights[name + KEPT].numpy(), count=shape.numel())).bool()
        if int(there.sum()) != len(values):
            wanted = int(there.sum())
            raise CheckpointError(f"export: {name} has {len(values)} values for {wanted}. Export the run again")
        found[name] = values.new_zeros(shape).masked_scatter(there.view(shape), values)
    return found
