"""A dense part without a weight, such as the product of two looked-up vectors: nothing to keep in step."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rtrain.parallel.chunks import Chunk, ReadChunk


class BareTower:
    """See `rtrain.parallel.tower.Tower`."""

    def __init__(self, module: nn.Module):
        self.module = self.bare = module
        self.grad_norm: Tensor | float | None = None
        self.left_out = self.skipped = False

    def backward(self, loss: Tensor) -> None:
        """Gradients go to the vectors alone."""
        loss.backward()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """There is nothing to average."""
        yield

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """None."""
        yield from ()

    def step(self, lr: float) -> None:
        """There is nothing to update."""

    def chunks(self) -> Iterator[Chunk]:
        """None."""
        yield from ()

    def restore(self, read: ReadChunk) -> None:
        """There is nothing to read."""
