"""Rows of unequal length in groups of similar length, so that little is computed on what only pads.

Shape legend: B rows, T positions of the longest row, G rows of a group, L positions of its longest, N positions of all
groups (the sum of G * L), E dim.
"""

from bisect import bisect_left
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

SPREAD = 0.8
"""The shortest row of a group has more than this share of its longest one's positions: fewer positions that only pad
against fewer kernels. On a CPU, 0.75 to 0.9 could not be told apart at lengths of lognormal distribution."""
SHORT = 16
"""Rows of at most so many positions are one group, however they differ."""


@dataclass(frozen=True)
class Groups:
    """Which positions of B rows of T are computed on, and how they lie side by side."""

    rows: int
    """B"""
    longest: int
    """T"""
    shapes: tuple[tuple[int, int], ...]
    """G and L of each group."""
    at_N: Tensor | None
    """int64: where each position lies among the B * T; none: all, in their order."""

    def pack(self, x_BTE: Tensor) -> Tensor:
        """[N, E]: group after group, in each row after row up to L."""
        flat = x_BTE.flatten(0, 1)
        return flat if self.at_N is None else flat.index_select(0, self.at_N)

    def unpack(self, x_NE: Tensor) -> Tensor:
        """[B, T, E], of what is in no group zeros."""
        if self.at_N is not None:
            x_NE = x_NE.new_zeros(self.rows * self.longest, x_NE.shape[1]).index_copy(0, self.at_N, x_NE)
        return x_NE.view(self.rows, self.longest, x_NE.shape[1])

    def split(self, x_NE: Tensor) -> list[Tensor]:
        """[G, L, E] of each group."""
        parts = x_NE.split([rows * longest for rows, longest in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def grouped(mask_BT: Tensor, how: Literal["jagged", "padded"]) -> Groups:
    """By where rows are real: in groups of similar length, or all in one."""
    return groups_of(mask_BT) if how == "jagged" else one_group(mask_BT)


def one_group(mask_BT: Tensor) -> Groups:
    """All rows as long as the longest one."""
    rows, longest = mask_BT.shape
    return Groups(rows, longest, ((rows, longest),), None)


def groups_of(mask_BT: Tensor) -> Groups:
    """By where rows are real, bool, from their first position on; waits for a device, to know how long they are.

    A row of nothing keeps its first position, so that there is always something to compute on. Made once for a mask,
    which all blocks of a model are given.
    """
    if (made := _MADE.get(mask_BT)) is None:
        made = _MADE[mask_BT] = _groups(mask_BT)
    return made


_MADE: MutableMapping[Tensor, Groups] = WeakTensorKeyDictionary()


def _groups(mask_BT: Tensor) -> Groups:
    rows, longest = mask_BT.shape
    if not rows:
        return one_group(mask_BT)
    if isinstance(mask_BT, FakeTensor):  # of a plan, which counts every row as long as can be
        return Groups(rows, longest, ((rows, longest),), torch.arange(rows * longest, device=mask_BT.device))
    lengths_B, order_B = mask_BT.sum(1).clamp(min=1).cpu().sort(descending=True, stable=True)
    at, shapes, begin = [], [], 0
    for end, positions in _cuts(lengths_B.tolist()):
        at.append((order_B[begin:end].unsqueeze(1) * longest + torch.arange(positions)).flatten())
        shapes.append((end - begin, positions))
        begin = end
    return Groups(rows, longest, tuple(shapes), torch.cat(at).to(mask_BT.device, non_blocking=True))


def _cuts(falling: Sequence[int]) -> list[tuple[int, int]]:
    """Of lengths in falling order, where each group ends, and its longest."""
    found, begin = [], 0
    while begin < len(falling):
        positions = falling[begin]
        least = int(SPREAD * positions) + 1 if positions > SHORT else 0
        begin = bisect_left(falling, 1 - least, lo=begin, key=lambda length: -length)
        found.append((begin, positions))
    return found


class UnpackedLinear(nn.Linear):
    """[N, E] -> [B, T, E]: where nothing was computed there is the bias alone."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.unpack = Unpack()

    def forward(self, x_NE: Tensor, groups: Groups) -> Tensor:  # type: ignore[override]
        """The bias comes after `unpack`, where partial sums of tensor ranks meet: once, not from each of them."""
        unpacked: Tensor = self.unpack(linear(x_NE, self.weight), groups)
        return unpacked + self.bias


class Unpack(nn.Module):
    """`Groups.unpack` as a module, whose output tensor ranks sum and deal out."""

    def forward(self, x_NE: Tensor, groups: Groups) -> Tensor:
        """[N, E] -> [B, T, E]"""
        return groups.unpack(x_NE)
