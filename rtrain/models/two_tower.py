"""Two towers: a user's and an item's vector, each through an MLP of its own (Covington et al., RecSys 2016)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.data.retrieval_batch import places
from rtrain.models.plan import Piece
from rtrain.models.ranking import check_dropout, check_sizes
from rtrain.models.retrieval import RetrievalConfig
from rtrain.nn.interaction import mlp
from rtrain.nn.tables import VECTORS, sequence
from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.in_batch_softmax import InBatchSoftmax


@dataclass(frozen=True, kw_only=True)
class TwoTower(RetrievalConfig):
    """Ids and features through tables and hidden layers; what comes out is compared by the objective.

    Of each feature of the data's `user_features` and `item_features` a tower takes one more vector, the mean of what
    an id has of it.
    """

    of_histories: ClassVar[bool] = False
    of_features: ClassVar[bool] = True

    hidden: tuple[int, ...] = (128,)
    """Hidden sizes of both towers."""
    dropout: float = 0.0
    """After each hidden layer."""
    objective: CandidateLoss = InBatchSoftmax(cosine=True, temperature=0.1)
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(hidden=self.hidden)
        check_dropout(self.dropout)

    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """Both towers are one."""
        beside = [name for feature in facts.item_features for name in (sequence(feature), places(feature))]
        towers = partial(TwoTowers, self, len(facts.user_features), len(facts.item_features))
        return (Piece(name="tower", build=towers, cost=0.0, takes=(VECTORS, sequence("item"), *beside)),)


class TwoTowers(nn.Module):
    """Gives [B, 1, E] and [B, 1, 1 + K, E]."""

    def __init__(self, config: TwoTower, user_features: int, item_features: int):
        super().__init__()
        self.user, self.item = (
            mlp((config.dim * (1 + more), *config.hidden, config.dim), dropout=config.dropout, last_linear=True)
            for more in (user_features, item_features)
        )

    def forward(self, user_BV: Tensor, item_BKE: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' vectors; `beside`: of each feature of items its vectors [B, T, E] and their places [B, T]."""
        means = [mean_by_place(*pair, item_BKE.shape[1]) for pair in zip(beside[::2], beside[1::2], strict=True)]
        return self.user(user_BV).unsqueeze(1), self.item(torch.cat([item_BKE, *means], dim=-1)).unsqueeze(1)


def mean_by_place(vectors_BTE: Tensor, place_BT: Tensor, count: int) -> Tensor:
    """[B, count, E]: of each row's places 0..count-1 the mean of the vectors that belong there, or zeros."""
    rows, _, dim = vectors_BTE.shape
    at_BT = place_BT.clamp(min=0)
    real_BT1 = (place_BT >= 0).to(vectors_BTE.dtype).unsqueeze(-1)
    sums = vectors_BTE.new_zeros(rows, count, dim)
    sums = sums.scatter_add(1, at_BT.unsqueeze(-1).expand_as(vectors_BTE), vectors_BTE * real_BT1)
    often = vectors_BTE.new_zeros(rows, count, 1).scatter_add(1, at_BT.unsqueeze(-1), real_BT1)
    return sums / often.clamp(min=1)
