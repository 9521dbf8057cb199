"""Looked-up vectors to the pipeline stages that take them, and their gradients back to the tables.

Every rank of a pipeline looks up its own share of the rows that all of them read, so that no row is looked up or
updated twice. Vectors travel as plain collectives outside of autograd, in the program's order on every rank; their
gradients are held until all microbatches are through, for tables want one update a step.

Shape legend: B rows that a pipeline's ranks read, L rows of one rank's share of them.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rtrain.batch import Jagged
from rtrain.models.plan import Piece
from rtrain.parallel.groups import Groups

Vectors = Mapping[str, Tensor]


class Carry:
    """Between this rank's lookup and the dense part; each call is a collective over the pipeline's ranks."""

    def __init__(self, groups: Groups, stages_of_ranks: Sequence[Sequence[Sequence[Piece]]]):
        """`stages_of_ranks`: the pieces of each stage of each pipeline rank."""
        self.ranks, self.index = groups.size("pipeline"), groups.index("pipeline")
        self.group = groups.along["pipeline"]
        self.replica_ranks = self.ranks * groups.size("tensor")
        self.takers: dict[str, list[int]] = {}
        """Name -> the pipeline ranks that take it."""
        for rank, stages in enumerate(stages_of_ranks):
            for name in {name for pieces in stages for piece in pieces for name in piece.takes}:
                self.takers.setdefault(name, []).append(rank)

    def share(self, ids: Jagged) -> Jagged:
        """The ids that this rank looks up: of B rows, which the ranks divide, its L."""
        if self.ranks == 1:
            return ids
        rows = len(ids.lengths) // len(ids.keys) // self.ranks
        return ids.rows(self.index * rows, (self.index + 1) * rows)

    def there(self, looked_up: Vectors) -> dict[str, Tensor]:
        """Of all ranks' vectors [L, ...] what this rank's stages take, [B, ...]: leaves, where gradients gather."""
        found = {}
        for name, local in looked_up.items():
            for rank in self._takers(name):
                arrived = self._gather(local.detach(), rank)
                if arrived is not None:
                    found[name] = arrived.requires_grad_(local.requires_grad)
        return found

    def back(self, looked_up: Vectors, leaves: Vectors, *, scale: float = 1.0) -> None:
        """The leaves' gradients through the lookup, whose backward updates the tables: a collective of all.

        What no stage used has a gradient too, so that every rank takes part in every exchange. TorchRec divides by the
        number of ranks, but the ranks of a replica share one loss: that is put right here. `scale`: of all gradients,
        the same on every rank.
        """
        factor = self.replica_ranks * scale
        vectors, gradients = [], []
        for name, local in looked_up.items():
            if not local.requires_grad:
                continue
            parts = [self._scatter(leaves.get(name), local, rank) for rank in self._takers(name)]
            gradient = sum(parts[1:], parts[0]) if parts else torch.zeros_like(local)
            vectors.append(local)
            gradients.append(gradient * factor if factor != 1 else gradient)
        if vectors:
            torch.autograd.backward(vectors, gradients)

    def _takers(self, name: str) -> list[int]:
        return self.takers.get(name, [])

    def _gather(self, local: Tensor, rank: int) -> Tensor | None:
        if self.ranks == 1:
            return local
        parts = [torch.empty_like(local) for _ in range(self.ranks)] if self.index == rank else None
        dist.gather(local.contiguous(), parts, group=self.group, group_dst=rank)
        return torch.cat(parts) if parts else None

    def _scatter(self, leaf: Tensor | None, local: Tensor, rank: int) -> Tensor:
        whole = None
        if leaf is not None:
            whole = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if self.ranks == 1:
            assert whole is not None, "one rank takes all that is taken"
            return whole
        part = torch.empty_like(local)
        parts = [x.contiguous() for x in whole.chunk(self.ranks)] if self.index == rank and whole is not None else None
        dist.scatter(part, parts, group=self.group, group_src=rank)
        return part
