"""Matrix factorisation: a vector a user, a vector an item, their product (Rendle et al., arXiv:1205.2618)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.models.plan import Piece
from rtrain.models.retrieval import RetrievalConfig
from rtrain.nn.tables import VECTORS, sequence


@dataclass(frozen=True, kw_only=True)
class MF(RetrievalConfig):
    """Two tables and nothing else; with `objective=BPR()` it is BPR-MF."""

    of_histories: ClassVar[bool] = False

    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """One, without a weight."""
        return (Piece(name="tower", build=MFTower, cost=0.0, takes=(VECTORS, sequence("item"))),)


class MFTower(nn.Module):
    """Gives the vectors as they are."""

    def forward(self, user_BE: Tensor, item_BKE: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, E] and [B, 1, 1 + K, E]."""
        return user_BE.unsqueeze(1), item_BKE.unsqueeze(1)
