"""A feature that is a vector made elsewhere."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from rtrain.errors import ConfigError
from rtrain.moment import Entity


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A vector a row that was made elsewhere, such as of an item's text or image; the model has it among its numbers.

    It is read as it is: scale it to numbers around 1 before, as those of `Dense` are.
    """

    name: str
    """Column of lists in the data and key in a request."""
    entity: Entity = "context"
    """Whom the feature describes."""
    dim: int
    """Numbers of each vector."""
    missing: Literal["zeros"] | None = None
    """What stands for a null; none refuses nulls."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"feature {self.name!r}: dim must be at least 1, got {self.dim}")

    @property
    def width(self) -> int:
        """Columns of the model's input that it becomes."""
        return self.dim

    @property
    def kept(self) -> tuple[int, ...]:
        """As `Dense.kept`."""
        return (1,) * self.dim

    def arrow_type(self) -> pa.DataType:
        """A list of what `Dense` takes."""
        return pa.list_(pa.float64())
