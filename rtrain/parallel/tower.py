"""The dense tower at any data-parallel wrapping, behind one small protocol."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from rtrain.mesh import Parallel
from rtrain.optim import AdamW
from rtrain.parallel.chunks import Chunk, ReadChunk, whole


class Tower(Protocol):
    """A wrapped dense part: call `module`, then `backward`, then `step`."""

    module: nn.Module
    grad_norm: float | None
    """Global norm of the last step's gradients before clipping; none where nothing computed it."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss` (this rank's rows, scaled so that the mean over ranks is the batch's loss)."""

    def step(self, lr: float) -> None:
        """One optimizer step at learning rate `lr`."""

    def chunks(self, *, writes: bool) -> Iterator[Chunk]:
        """Weights (`model.tower.*`) and optimizer state (`optim.tower.*`); a collective over ranks.

        Only the rank with `writes` is given tensors; the others take part and get nothing.
        """

    def restore(self, read: ReadChunk) -> None:
        """Optimizer state from storage. Weights are loaded before wrapping, by `load_weights`."""


def load_weights(tower: nn.Module, read: ReadChunk) -> None:
    """Fill a tower that is not wrapped yet from stored weights."""
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            parameter.copy_(read(whole(f"model.tower.{name}", parameter)))


def wrap(tower: nn.Module, parallel: Parallel, optim: AdamW, device: torch.device, *, rows_per_rank: int) -> Tower:
    """`tower` under what `parallel.dense` names; a collective over all ranks."""
    if parallel.dense == "ddp":
        from rtrain.parallel.ddp import ReplicatedTower

        return ReplicatedTower(tower, optim, device)
    # DeepSpeed takes seconds and 100 MB to import, so only a run that uses it pays.
    from rtrain.parallel.zero import ZeroTower

    return ZeroTower(tower, parallel.zero_stage, optim, device, rows_per_rank=rows_per_rank)
