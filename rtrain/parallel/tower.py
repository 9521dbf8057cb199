"""The dense part of a model at any data-parallel wrapping, behind one small protocol."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from rtrain.mesh import Parallel
from rtrain.optim import AdamW
from rtrain.parallel.bare import BareTower
from rtrain.parallel.chunks import Chunk, Place, ReadChunk
from rtrain.parallel.groups import Groups


class Tower(Protocol):
    """A wrapped dense part: call `module`, then `backward`, then `step`; or `accumulate` several backwards.

    What differs between ranks (tensor shares, pipeline stages) is in the parameters and their
    `Place`s already; a tower adds the data axis.
    """

    module: nn.Module
    """What to call for a forward pass that ends in `backward`."""
    bare: nn.Module
    """What to call inside `accumulate`."""
    grad_norm: Tensor | float | None
    """Global norm of the last step's gradients before clipping; none where nothing computed it."""
    left_out: bool
    """Whether the last step was left out, because its gradients were not finite: the same on all ranks. Who leaves none
    out has them in weights and loss."""
    skipped: bool
    """Whether some step was."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss` (this rank's rows, scaled so that the mean over data ranks is the batch's loss)."""

    def accumulate(self) -> AbstractContextManager[None]:
        """Several plain `loss.backward()` on `bare` inside; their sum is averaged over data ranks once, at its end."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Logical name and gradient of this rank's weights, averaged over data ranks; a collective over these."""

    def step(self, lr: float) -> None:
        """One optimizer step at learning rate `lr`."""

    def chunks(self) -> Iterator[Chunk]:
        """This rank's share of weights and optimizer state; a collective over ranks."""

    def restore(self, read: ReadChunk) -> None:
        """Optimizer state from storage. Weights are loaded before wrapping, by `load_weights`."""


def load_weights(module: nn.Module, places: Mapping[str, Place], read: ReadChunk) -> None:
    """Fill a module that is not wrapped yet from stored weights."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(read(places[name].weight(parameter)))


def wrap(
    module: nn.Module,
    places: Mapping[str, Place],
    parallel: Parallel,
    optim: AdamW,
    groups: Groups,
    device: torch.device,
    *,
    rows_per_microbatch: int,
    accumulates: bool = False,
) -> Tower:
    """`module` under what `parallel.dense` names; a collective over all ranks.

    `accumulates`: every step goes through `accumulate`, so that nothing need listen to each backward.
    """
    if next(module.parameters(), None) is None:
        return BareTower(module)
    if parallel.dense == "ddp":
        from rtrain.parallel.ddp import ReplicatedTower

        return ReplicatedTower(module, places, optim, groups, device, accumulates=accumulates)
    # DeepSpeed takes seconds and 100 MB to import, so only a run that uses it pays.
    from rtrain.parallel.zero import ZeroTower

    return ZeroTower(
        module, places, parallel.zero_stage, optim, groups, device, rows_per_microbatch=rows_per_microbatch
    )
