"""The ranks beside this one, as an objective sees them: see `rtrain.objectives.ranks`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rtrain.mesh import Dealt
from rtrain.objectives.ranks import Alone
from rtrain.parallel.groups import Groups
from rtrain.parallel.tensor import TensorRank


class MeshRanks:
    """Those that share the outputs of a row, and those with the batch's other rows (`data`, whatever the axis)."""

    def __init__(self, tensor: TensorRank, groups: Groups, dealt: Dealt):
        share = groups.mesh.share(groups.rank, dealt)
        self.tensor, self.data, self.data_index = tensor, share.count, share.index
        self._dealt = dealt
        self._group = groups.stage if dealt == "rows" else groups.along["data"]

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """As `TensorRank.cross_entropy`; ranks that share rows have all logits of their own."""
        if self._dealt == "rows":
            return Alone().cross_entropy(logits_NV, targets_N)
        return self.tensor.cross_entropy(logits_NV, targets_N)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all data ranks, in their order; each has as many."""
        if self.data == 1:
            return rows
        rows = rows.contiguous()
        found = rows.new_empty((self.data * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(found, rows, group=self._group)
        return found

    def most(self, rows: Tensor) -> int:
        """How many rows the data rank has that has most; of several, waits for the device."""
        if self.data == 1:
            return len(rows)
        return int(self.gather(torch.tensor([len(rows)], device=rows.device)).max())

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """As `gather`; what every rank's loss says of a row is summed where the row is."""
        out: Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return out

    def exchange(self, blocks: Tensor) -> Tensor:
        """[data, ...], a block for each data rank -> [data, ...], what each has for this one."""
        if self.data == 1:
            return blocks
        blocks = blocks.contiguous()
        found = blocks.new_empty(blocks.shape)
        dist.all_to_all_single(found, blocks, group=self._group)
        return found


class _Gather(torch.autograd.Function):
    """Backward is a collective: every rank's graph has it, at the same place."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: MeshRanks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), ranks = gradients, ctx.ranks
        if ranks.data == 1:
            return gradient, None
        gradient = gradient.contiguous()
        local = gradient.new_empty((gradient.shape[0] // ranks.data, *gradient.shape[1:]))
        dist.reduce_scatter_tensor(local, gradient, group=ranks._group)
        return local, None
