"""A rank's share of positive interactions: of training, of the catalogue, or of those whom items are found for.

Shape legend: B rows, T positions of the longest row (1 for pairs), K negatives of a position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.data.columns import Lists
from rtrain.schema import NONE, Jagged

Ids = NDArray[np.int64]


@dataclass
class RetrievalBatch:
    """One rank's share of a global batch: of training, of the catalogue, or of those whom items are found for."""

    ids: Jagged
    """Whom, and the candidates `item`: of each position its positive, then its K negatives."""
    target: Tensor
    """int64 [B, T, 2]: each position's positive (-1: it has none), and how often that item was had in training"""
    row: Tensor
    """int64 [B]: the sample's number in its data set; -1 pads"""
    last: Tensor
    """int64 [B]: the position that items are found from"""
    global_rows: int
    loss_units: int
    """Positives of the global batch: its loss is a mean over them."""
    times: Tensor | None = None
    """int64 [B, T]: of histories, when each item was had, or its place in the source"""
    items: Ids | None = None
    """Of a batch of the catalogue: the item of each row."""
    seen: Lists | None = None
    """Of a batch of users: the items that are left out of what is found."""
    positives: Lists | None = None
    """Of a batch of users: the items to be found."""

    made_by: ClassVar[str] = "Pairs or Histories"

    @property
    def rows(self) -> int:
        """B, padding included."""
        return int(self.row.shape[0])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Beside the vectors of the ids: of histories their times, int64 [B, T] in seconds (0 where there is none)."""
        return {} if self.times is None else {"times": self.times}

    def padded(self, rows: int, longest: Mapping[str, int] = NONE) -> "RetrievalBatch":
        """With rows without ids or targets at its end, up to `rows`; and with positions up to the `longest` history."""
        extra = rows - self.rows

        def later(of: Tensor) -> int:
            return longest.get("history", of.shape[1]) - of.shape[1]

        if extra == later(self.target) == 0 and (self.times is None or not later(self.times)):
            return self
        lengths = self.ids.lengths.view(len(self.ids.keys), self.rows)
        return replace(
            self,
            ids=Jagged(self.ids.keys, self.ids.values, pad(lengths, (0, extra)).flatten()),
            target=pad(self.target, (0, 0, 0, later(self.target), 0, extra), value=-1),
            row=pad(self.row, (0, extra), value=-1),
            last=pad(self.last, (0, extra)),
            times=None if self.times is None else pad(self.times, (0, later(self.times), 0, extra)),
        )

    def to(self, device: torch.device) -> "RetrievalBatch":
        """A copy on another device; what only the host reads stays there."""
        if self.row.device == device:
            return self
        tensors = ("target", "row", "last", *(("times",) if self.times is not None else ()))
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in tensors}
        return replace(self, ids=self.ids.to(device), **moved)
