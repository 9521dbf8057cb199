"""Two towers: a user's and an item's vector, each through an MLP of its own (Covington et al., RecSys 2016)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.models.plan import Piece
from rtrain.models.ranking import check_dropout, check_sizes
from rtrain.models.retrieval import AnyObjective, RetrievalConfig
from rtrain.nn.interaction import mlp
from rtrain.nn.tables import VECTORS, sequence
from rtrain.objectives.candidates import InBatchSoftmax


@dataclass(frozen=True, kw_only=True)
class TwoTower(RetrievalConfig):
    """Ids through tables and hidden layers; what comes out is compared by the objective."""

    of_histories: ClassVar[bool] = False

    hidden: tuple[int, ...] = (128,)
    """Hidden sizes of both towers."""
    dropout: float = 0.0
    """After each hidden layer."""
    objective: AnyObjective = InBatchSoftmax(cosine=True, temperature=0.1)
    """What the model is trained towards, and how vectors are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(hidden=self.hidden)
        check_dropout(self.dropout)

    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """Both towers are one."""
        return (Piece(name="tower", build=partial(TwoTowers, self), cost=0.0, takes=(VECTORS, sequence("item"))),)


class TwoTowers(nn.Module):
    """Gives [B, 1, E] and [B, 1, 1 + K, E]."""

    def __init__(self, config: TwoTower):
        super().__init__()
        sizes = (config.dim, *config.hidden, config.dim)
        self.user, self.item = (mlp(sizes, dropout=config.dropout, last_linear=True) for _ in range(2))

    def forward(self, user_BE: Tensor, item_BKE: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' vectors."""
        return self.user(user_BE).unsqueeze(1), self.item(item_BKE).unsqueeze(1)
