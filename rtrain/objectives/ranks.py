"""What an objective may ask of the other ranks."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""A target that counts for nothing; torch's own default."""


class Ranks(Protocol):
    """This rank's neighbours: those that share the outputs of a row, and those that have the batch's other rows."""

    @property
    def data(self) -> int:
        """Ranks that a global batch is dealt to."""

    @property
    def data_index(self) -> int:
        """This rank's number among them."""

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Sum of the positions' cross-entropies in nats, float32, of logits of which each tensor rank has a share.

        Targets of `IGNORED` count for nothing.
        """

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all data ranks, in their order; each has as many. No gradient goes back."""

    def most(self, rows: Tensor) -> int:
        """How many rows the data rank has that has most; a collective."""

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """As `gather`; what every rank's loss says of a row is summed where the row is."""

    def exchange(self, blocks: Tensor) -> Tensor:
        """[data, ...], a block for each data rank -> [data, ...], what each has for this one. No gradient goes back."""


class Alone:
    """A world of one."""

    data, data_index = 1, 0

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Plain."""
        return cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum")

    def gather(self, rows: Tensor) -> Tensor:
        """They are all."""
        return rows

    def most(self, rows: Tensor) -> int:
        """Its own."""
        return len(rows)

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """They are all."""
        return rows

    def exchange(self, blocks: Tensor) -> Tensor:
        """There is nobody to exchange with."""
        return blocks


def filled(rows: Tensor, count: int, value: float) -> Tensor:
    """With rows of `value` at the end, up to `count`: for a gather, to which every rank gives as many."""
    return torch.cat([rows, rows.new_full((count - len(rows), *rows.shape[1:]), value)])
