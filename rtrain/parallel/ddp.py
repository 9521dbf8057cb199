"""The dense tower replicated by torch's DistributedDataParallel, with an ordinary torch optimizer."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rtrain.optim import AdamW
from rtrain.parallel.chunks import Chunk, ReadChunk, whole


class ReplicatedTower:
    """See `rtrain.parallel.tower.Tower`."""

    def __init__(self, tower: nn.Module, optim: AdamW, device: torch.device):
        self.tower = tower.to(device)
        # Buffers of a tower are constants (a checkpoint has none of them): no collective a step for them.
        self.module: nn.Module = DistributedDataParallel(
            self.tower, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        self.optim = optim
        self.optimizer = optim.build(self.tower.parameters())
        self.grad_norm: float | None = None

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, averaged over ranks as they come."""
        loss.backward()

    def step(self, lr: float) -> None:
        """Clip, update, clear the gradients."""
        if self.optim.clip_norm:
            self.grad_norm = float(nn.utils.clip_grad_norm_(self.tower.parameters(), self.optim.clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def chunks(self, *, writes: bool) -> Iterator[Chunk]:
        """Weights and optimizer state, whole, on the rank that writes."""
        if not writes:
            return
        for name, parameter in self.tower.named_parameters():
            yield whole(f"model.tower.{name}", parameter.detach())
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                yield whole(f"optim.tower.{name}.{slot}", value.detach())

    def restore(self, read: ReadChunk) -> None:
        """Optimizer state from `read`; the weights were loaded before the wrapping."""
        for name, parameter in self.tower.named_parameters():
            slots = {"step": torch.zeros(()), "exp_avg": parameter.detach(), "exp_avg_sq": parameter.detach()}
            self.optimizer.state[parameter] = {
                slot: read(whole(f"optim.tower.{name}.{slot}", like))
                .clone()
                .to(parameter.device if like.dim() else "cpu")
                for slot, like in slots.items()
            }
