"""Matrix factorisation: a vector a user, a vector an item, their product (Rendle et al., arXiv:1205.2618)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.models.retrieval import RetrievalConfig


@dataclass(frozen=True, kw_only=True)
class MF(RetrievalConfig):
    """Two tables and nothing else; with `objective=BPR()` it is BPR-MF."""

    of_histories: ClassVar[bool] = False

    def tower(self, facts: RetrievalFacts) -> nn.Module:
        """Without a weight."""
        return MFTower()


class MFTower(nn.Module):
    """Gives the vectors as they are."""

    def forward(self, user_BE: Tensor, item_BKE: Tensor, mask_BK: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, E] and [B, 1, 1 + K, E]."""
        return user_BE.unsqueeze(1), item_BKE.unsqueeze(1)
