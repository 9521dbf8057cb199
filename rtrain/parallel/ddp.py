"""The dense part replicated over the data ranks, with an ordinary torch optimizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from rtrain.optim import AdamW
from rtrain.parallel.chunks import Chunk, Place, ReadChunk
from rtrain.parallel.clip import clip_global_norm
from rtrain.parallel.groups import Groups


class ReplicatedTower:
    """See `rtrain.parallel.tower.Tower`."""

    def __init__(
        self,
        tower: nn.Module,
        places: Mapping[str, Place],
        optim: AdamW,
        groups: Groups,
        device: torch.device,
        *,
        accumulates: bool,
    ):
        self.bare = self.module = tower.to(device)
        self.places, self.groups = places, groups
        if not accumulates and groups.size("data") > 1:
            # One rank alone has nothing to agree on: a wrapper would cost it a copy of each gradient and a collective.
            # Buffers of a tower are constants (a checkpoint has none of them): no collective a step for them.
            self.module = DistributedDataParallel(
                tower, process_group=groups.along["data"], gradient_as_bucket_view=True, broadcast_buffers=False
            )
        self.optim = optim
        self.optimizer = optim.build(self.bare.parameters())
        self.grad_norm: Tensor | float | None = None
        self.left_out = self.skipped = False

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, averaged over ranks as they come."""
        loss.backward()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """The sum of the gradients, averaged in one collective."""
        yield
        gradients = [p.grad for p in self.bare.parameters() if p.grad is not None]
        if self.groups.size("data") == 1:
            return
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat, group=self.groups.along["data"])
        flat /= self.groups.size("data")
        for gradient, averaged in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(averaged)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Of every weight that the loss depends on."""
        for name, parameter in self.bare.named_parameters():
            if parameter.grad is not None:
                yield self.places[name].name, parameter.grad

    def step(self, lr: float) -> None:
        """Clip, update, clear the gradients."""
        if self.optim.clip_norm:
            self.grad_norm = clip_global_norm(self.bare, self.places, self.groups, self.optim.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def chunks(self) -> Iterator[Chunk]:
        """Weights and optimizer state, on the ranks that write them."""
        for name, parameter in self.bare.named_parameters():
            place = self.places[name]
            if not place.writes:
                continue
            yield place.weight(parameter.detach())
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if place.owns(value):
                    yield place.state(slot, value.detach())

    def restore(self, read: ReadChunk) -> None:
        """Optimizer state from `read`; the weights were loaded before the wrapping."""
        for name, parameter in self.bare.named_parameters():
            slots = {"step": torch.zeros(()), "exp_avg": parameter.detach(), "exp_avg_sq": parameter.detach()}
            # On a GPU the fused optimizer counts there; on CPU that is the same.
            self.optimizer.state[parameter] = {
                slot: read(self.places[name].state(slot, like)).clone().to(parameter.device)
                for slot, like in slots.items()
            }
