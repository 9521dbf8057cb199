"""Clipping by the norm of all gradients of the model, each counted once, whatever the layout."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rtrain.parallel.chunks import Place
from rtrain.parallel.groups import Groups


def clip_global_norm(module: nn.Module, places: Mapping[str, Place], groups: Groups, largest: float) -> Tensor:
    """Scale the gradients down to a global 2-norm of at most `largest`; returns the norm before, a scalar.

    Gradients are averaged over data ranks already. A rectangle that several tensor ranks hold counts once.
    """
    parameters = dict(module.named_parameters())
    if groups.mesh.tensor * groups.mesh.pipeline == 1:
        return nn.utils.clip_grad_norm_(parameters.values(), largest)
    counted = [
        p.grad
        for name, p in parameters.items()
        if p.grad is not None and (groups.index("tensor") == 0 or places[name].sizes != places[name].shape)
    ]
    square = torch.stack([g.float().norm() ** 2 for g in counted]).sum()
    dist.all_reduce(square, group=groups.replica)
    norm = square.sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters.values():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    return norm
