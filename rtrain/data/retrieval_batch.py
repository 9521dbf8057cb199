"""A rank's share of positive interactions: of training, of the catalogue, or of those whom items are found for.

Shape legend: B rows, T positions of the longest row (1 for pairs), K negatives of a position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.batch import NONE, Jagged, copied
from rtrain.data.columns import Lists

Ids = NDArray[np.int64]


def places(feature: str) -> str:
    """Name of the input that says to which candidate a value of a feature of items belongs."""
    return f"places.{feature}"


@dataclass
class RetrievalBatch:
    """One rank's share of a global batch: of training, of the catalogue, or of those whom items are found for."""

    ids: Jagged
    """Whom, and the candidates `item`: of each position its positive, then its K negatives."""
    target: Tensor
    """int64 [B, T, 2 + F + X]: each position's positive (-1: it has none), how often it was had in training, then what
    `Negatives` asks for. Not of uniform negatives alone, F = K: how often each negative was had; -1: it only fills.
    Where `known`, T * X: items that the row's user had and that are positives of the global batch; -1 fills"""
    row: Tensor
    """int64 [B]: the sample's number in its data set; -1 pads"""
    last: Tensor
    """int64 [B]: the position that items are found from"""
    global_rows: int
    units: int
    """Positives of the global batch, over all data ranks: its loss is a mean over them."""
    times: Tensor | None = None
    """int64 [B, T]: of histories, when each item was had, or its place in the source"""
    places: Mapping[str, Tensor] = field(default_factory=dict)
    """Feature of items beside their ids -> int64 [B, T']: to which of the row's candidates each value belongs, or -1"""
    graph: Mapping[str, Tensor] | None = None
    """That of all interactions of training, see `rtrain.data.graph`"""
    items: Ids | None = None
    """Of a batch of the catalogue: the item of each row."""
    seen: Lists | None = None
    """Of a batch of users: the items that are no candidates."""
    positives: Lists | None = None
    """Of a batch of users: the items to be found."""

    made_by: ClassVar[str] = "Pairs or Histories"

    def loss_units(self, summed: Callable[[float], float]) -> float:
        """As `data.protocol.AnyBatch`: its positives."""
        return self.units

    @property
    def rows(self) -> int:
        """B, padding included."""
        return int(self.row.shape[0])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Beside the vectors of the ids: of histories their times, int64 [B, T] in seconds (0 where there is none).

        Of what is known of items beside their ids, `places`, and whose they are: `item` [B, T * (1 + K)]. With a graph
        it and the ids themselves, which tell its nodes: `user` [B, 1] and `item`.
        """
        if self.graph is not None:
            return {**self.graph, "user": self.ids.padded("user"), "item": self.ids.padded("item")}
        beside = {} if self.times is None else {"times": self.times}
        if self.places:
            beside["item"] = self.ids.padded("item")
        return beside | {places(name): at for name, at in self.places.items()}

    def padded(self, rows: int, longest: Mapping[str, int] = NONE) -> "RetrievalBatch":
        """With rows without ids or targets at its end, up to `rows`; with positions up to the `longest` history, and
        places up to the `longest` of their feature."""
        extra = rows - self.rows

        def later(of: Tensor, feature: str = "history") -> int:
            return max(0, longest.get(feature, 0) - of.shape[1])

        wider = [later(self.target), *(later(at, name) for name, at in self.places.items())]
        if not extra and not any(wider) and (self.times is None or not later(self.times)):
            return self
        return replace(
            self,
            ids=self.ids.extended(extra),
            target=pad(self.target, (0, 0, 0, later(self.target), 0, extra), value=-1),
            row=pad(self.row, (0, extra), value=-1),
            last=pad(self.last, (0, extra)),
            places={name: pad(at, (0, later(at, name), 0, extra), value=-1) for name, at in self.places.items()},
            times=None if self.times is None else pad(self.times, (0, later(self.times), 0, extra)),
        )

    def to(self, device: torch.device) -> "RetrievalBatch":
        """A copy on another device; what only the host reads stays there."""
        return self if self.row.device == device else copied(self, device)
