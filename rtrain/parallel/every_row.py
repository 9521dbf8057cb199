"""Adam on every row of the tables in every step, read or not, as torch has it of a dense gradient.

fbgemm's fused kernels have no such Adam (on CPU none at all), and its dense ones pool sequences on CPU, which TorchRec
does not expect. But the fused ones sum a gradient a row, scaled as it has to be, on CPU and GPU and at every sharding.
So the weights are put aside before backward and zeros in their place: the kernels' SGD of rate -1, whose gradients do
not depend on the weights, leaves the gradient there, zero in rows that were not read. Then torch's Adam changes the
weights that lie aside, and they go back.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from rtrain.nn.tables import Table
from rtrain.optim import Adam
from rtrain.parallel.chunks import Chunk, Place, ReadChunk


class AdamUpdates:
    """See `rtrain.parallel.table_updates.TableUpdates`."""

    KERNEL_LR: ClassVar[float] = -1.0
    """0 - (-1 x gradient) is the gradient, to the last bit."""

    def __init__(self, optim: Adam, weights: Iterable[tuple[Table, Chunk]]):
        """`weights`: this rank's shards, as views of the kernels' memory."""
        self.lr = optim.lr
        self.shards: list[tuple[Place, Tensor, nn.Parameter]] = []
        """Where each lies, the kernels' memory, and the weights put aside."""
        for table, chunk in weights:
            place = Place(
                name=f"tables.{table.path}",
                shape=chunk.shape,
                offsets=chunk.offsets,
                sizes=tuple(chunk.data.shape),
                writes=True,
            )
            aside = nn.Parameter(chunk.data.clone())
            # Not `detach`: autograd would see that what it kept for backward is written before it.
            aside.grad = chunk.data.data
            self.shards.append((place, aside.grad, aside))
        # A rank that the plan gives no shard has nothing to do, of which torch makes an error.
        self.optimizer = optim.build([aside for *_, aside in self.shards]) if self.shards else None
        if self.optimizer:
            for *_, aside in self.shards:
                self.optimizer.state[aside] = {
                    "step": torch.zeros((), device=aside.device),
                    "exp_avg": torch.zeros_like(aside, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(aside, requires_grad=False),
                }

    def set_lr(self, lr: float) -> None:
        """The rate of the next update."""
        self.lr = lr

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Zeros before backward, Adam behind it."""
        for _, kernel, _ in self.shards:
            kernel.zero_()
        yield
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        for _, kernel, aside in self.shards:
            kernel.copy_(aside.detach())

    def begin(self) -> None:
        """What lies aside is what the kernels have."""
        for _, kernel, aside in self.shards:
            aside.detach().copy_(kernel)

    def catch_up(self) -> None:
        """No row is ever behind."""

    def chunks(self) -> Iterator[Chunk]:
        """Both moments, and of each table the number of steps."""
        for place, slot, value in self._states():
            if place.owns(value):
                yield place.state(slot, value)

    def restore(self, read: ReadChunk) -> None:
        """Moments of this rank's shards; the steps, which one rank has written, on all."""
        for place, slot, value in self._states():
            value.copy_(read(place.state(slot, value)).reshape(value.shape))

    def _states(self) -> Iterator[tuple[Place, str, Tensor]]:
        for place, _, aside in self.shards:
            assert self.optimizer is not None, "there are shards"
            for slot, value in self.optimizer.state[aside].items():
                yield place, slot, value
