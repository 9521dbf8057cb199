"""A piece of a logical tensor: what every engine gives to a checkpoint and takes from one.

A logical tensor has the name and shape that it has in one unsharded process. Each rank owns some
rectangles of it. This is the whole contract between `parallel/` and `checkpoint/`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Chunk:
    """One rectangle of one logical tensor."""

    name: str
    """Logical name: `model.` or `optim.`, then the unsharded module's own name."""
    shape: tuple[int, ...]
    """Shape of the whole logical tensor."""
    offsets: tuple[int, ...]
    """Where the rectangle begins, one number a dim."""
    data: Tensor
    """The rectangle; a view of live memory unless the engine says otherwise."""


ReadChunk = Callable[[Chunk], Tensor]
"""Gives the stored values of a chunk's rectangle (its `data` is not read), in the stored dtype."""


def whole(name: str, data: Tensor) -> Chunk:
    """A chunk that is the whole of its tensor."""
    return Chunk(name=name, shape=tuple(data.shape), offsets=(0,) * data.dim(), data=data)
