"""The next token of every position.

Shape legend: B rows, T tokens, V vocabulary (of a tensor rank's share), N positions.
"""

import math
from typing import Any, ClassVar

from torch import Tensor

from rtrain.metrics.language import TokensScored
from rtrain.objectives.ranks import IGNORED, Ranks


class NextToken:
    """Cross-entropy of each position's target against the logits of the vocabulary."""

    link = None
    """Logits of a vocabulary are too many to keep."""
    gives: ClassVar[Any] = TokensScored
    tallies: ClassVar[str] = "losses"

    @staticmethod
    def loss(logits_BTV: Tensor, targets_BT: Tensor, ranks: Ranks) -> Tensor:
        """Sum over the batch's positions."""
        return ranks.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    @staticmethod
    def tally(ranks: Ranks, metrics: object) -> "TokenTally":
        """For the scores of a split."""
        return TokenTally()


class TokenTally:
    """Losses and tokens, summed."""

    def __init__(self) -> None:
        self.loss, self.tokens, self.broken = 0.0, 0, 0

    def add(self, loss: float, batch: Any) -> None:
        """Another batch: the sum of its losses."""
        self.loss += loss
        self.tokens += int((batch.targets != IGNORED).sum())
        self.broken += not math.isfinite(loss)

    def scored(self) -> tuple[dict[str, TokensScored], int]:
        """Of all batches; and how many gave no number."""
        return {"": TokensScored(loss=self.loss, tokens=self.tokens)}, self.broken
