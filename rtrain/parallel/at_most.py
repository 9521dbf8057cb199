"""Tensors without numbers whose sizes would follow from numbers: as large as they can be.

A mask takes every row, of unique values there are as many as values. So what is counted of them is an upper bound.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten


class AtMost(TorchDispatchMode):
    """Entered within a `FakeTensorMode`, which by itself refuses all that chooses by numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call itself where no size depends on numbers."""
        return _AT_MOST.get(func, func)(*args, **(kwargs or {}))


def _nonzero(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(), x.dim()), dtype=torch.int64)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    by_number: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype in (torch.bool, torch.uint8)
        by_number += _nonzero(index).unbind(1) if index is not None and masks else [index]
    found: Tensor = ATEN.index.Tensor(x, by_number)
    return found


def _masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())


def _unique(x: Tensor, sorted: bool = True, inverse: bool = False, counts: bool = False) -> tuple[Tensor, ...]:
    """As torch does, each of the three is there whether it is asked for or not."""
    places = x.new_empty(x.shape, dtype=torch.int64)
    return x.new_empty(x.numel()), places, places.new_empty(x.numel() if counts else 0)


_AT_MOST: dict[Any, Callable[..., Any]] = {
    ATEN.nonzero.default: _nonzero,
    ATEN.index.Tensor: _index,
    ATEN.masked_select.default: _masked_select,
    ATEN._unique2.default: _unique,
}
