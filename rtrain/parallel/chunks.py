"""A piece of a logical tensor: what all that is trained gives to a checkpoint and takes from one.

A logical tensor has the name and shape that it has in one unsharded process. Each rank owns some
rectangles of it. This is the whole contract between `parallel/` and `checkpoint/`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

WEIGHTS = "model."


@dataclass
class Chunk:
    """One rectangle of one logical tensor."""

    name: str
    """Logical name: of `weight_name` or `state_name`; of random states and ledgers their own."""
    shape: tuple[int, ...]
    """Shape of the whole logical tensor."""
    offsets: tuple[int, ...]
    """Where the rectangle begins, one number a dim."""
    data: Tensor
    """The rectangle; a view of live memory unless its maker says otherwise."""


def weight_name(parameter: str) -> str:
    """Logical name of a weight, from the unsharded module's own."""
    return f"{WEIGHTS}{parameter}"


def state_name(parameter: str, slot: str) -> str:
    """Logical name of an optimizer state of a parameter."""
    return f"optim.{parameter}.{slot}"


ReadChunk = Callable[[Chunk], Tensor]
"""Gives the stored values of a chunk's rectangle (its `data` is not read), in the stored dtype."""


def whole(name: str, data: Tensor) -> Chunk:
    """A chunk that is the whole of its tensor."""
    return Chunk(name=name, shape=tuple(data.shape), offsets=(0,) * data.dim(), data=data)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where what this rank holds of a parameter lies in the logical one."""

    name: str
    """Logical name, without `model.` or `optim.`."""
    shape: tuple[int, ...]
    """Shape of the whole logical parameter."""
    offsets: tuple[int, ...]
    """Where this rank's rectangle begins."""
    sizes: tuple[int, ...]
    """Shape of this rank's rectangle."""
    writes: bool
    """Whether this rank writes the rectangle into checkpoints; of those that hold the same one, one does."""

    @property
    def cut(self) -> tuple[slice, ...]:
        """The rectangle as an index of the whole."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.sizes, strict=True))

    def owns(self, data: Tensor) -> bool:
        """Whether this rank writes `data`, which is of the rectangle's shape or a scalar for the whole parameter."""
        return self.writes and (data.dim() > 0 or not any(self.offsets))

    def weight(self, data: Tensor) -> Chunk:
        """The weight itself."""
        return Chunk(name=weight_name(self.name), shape=self.shape, offsets=self.offsets, data=data)

    def state(self, slot: str, data: Tensor) -> Chunk:
        """An optimizer state of the weight's shape, or a scalar that is the same for all of it."""
        name = state_name(self.name, slot)
        if data.dim() == 0:
            return whole(name, data)
        return Chunk(name=name, shape=self.shape, offsets=self.offsets, data=data)
