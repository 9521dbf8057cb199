"""A model whole in one process, under the names that its tensors have in a checkpoint, without `model.`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rtrain.models.plan import chain, drawn, nest
from rtrain.models.protocol import Blueprint


class Unsharded(nn.Module):
    """Batch -> what the objective takes: of a ranking model logits float32 [B] or [B, L], of a retrieval model vectors.

    The dense weights are drawn from `seed`, the same at every layout. Tables on the `meta` device have shapes only:
    the sharding fills them.
    """

    def __init__(self, blueprint: Blueprint, *, seed: int, table_device: torch.device | str = "cpu"):
        from rtrain.nn.bags import Tables  # torchrec: seconds to import, and a config does without

        super().__init__()
        pieces = blueprint.pieces
        self.tables = Tables(blueprint.tables, blueprint.features, table_device)
        self.objective: Any = blueprint.objective
        self._pieces = [drawn(piece, seed, first=pieces[0].name) for piece in pieces]
        self._takes = [piece.takes for piece in pieces]
        for piece, module in zip(pieces, self._pieces, strict=True):
            nest(self, piece.name, module)

    def forward(self, batch: Any) -> Any:
        """`batch`: of the kind that the model reads; `objective.link` gives what logits mean."""
        return chain(self._pieces, self._takes, (), self.given(batch))

    def given(self, batch: Any) -> dict[str, Tensor]:
        """What the dense part may take of a batch, by name: its own inputs, and what its ids are looked up as."""
        return {**batch.inputs, **self.tables(batch.ids)}

    def dense(self) -> "DensePart":
        """All but the tables; of the same weights."""
        return DensePart(self._pieces, self._takes)


class DensePart(nn.Module):
    """The pieces one after the other, of what they take of batches and tables."""

    def __init__(self, pieces: Sequence[nn.Module], takes: Sequence[tuple[str, ...]]):
        super().__init__()
        self.pieces, self._takes = nn.ModuleList(pieces), list(takes)
        self.takes = tuple(dict.fromkeys(name for names in takes for name in names))
        """Names, each once."""

    def forward(self, *given: Tensor) -> Any:
        """`given`: in the order of `takes`; the same as `Unsharded`'s."""
        named: Mapping[str, Tensor] = dict(zip(self.takes, given, strict=True))
        return chain(self.pieces, self._takes, (), named)
