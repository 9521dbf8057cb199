"""What an objective may ask of the other ranks."""

from typing import Protocol

from torch import Tensor
from torch.nn.functional import cross_entropy


class Ranks(Protocol):
    """This rank's neighbours: those that share the outputs of a row, and those that have the batch's other rows."""

    @property
    def data(self) -> int:
        """Ranks that a global batch is dealt to."""

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Sum of the positions' cross-entropies in nats, float32, of logits of which each tensor rank has a share.

        Targets of `next_token.IGNORED` count for nothing.
        """

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all data ranks, in their order; each has as many. No gradient goes back."""

    def exchange(self, blocks: Tensor) -> Tensor:
        """[data, ...], a block for each data rank -> [data, ...], what each has for this one. No gradient goes back."""


class Alone:
    """A world of one."""

    data = 1

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Plain."""
        return cross_entropy(logits_NV.float(), targets_N, ignore_index=-100, reduction="sum")

    def gather(self, rows: Tensor) -> Tensor:
        """They are all."""
        return rows

    def exchange(self, blocks: Tensor) -> Tensor:
        """There is nobody to exchange with."""
        return blocks
