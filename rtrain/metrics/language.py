"""Metrics of next-token predictions."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtrain.metrics.state import Metric, Partial


@dataclass(frozen=True)
class TokensScored:
    """Tokens with their predicted probabilities, already summed: logits of a vocabulary are too many to keep."""

    measured_by: ClassVar[str] = "TokenLoss and Perplexity"

    loss: float
    """Sum of the tokens' cross-entropies, in nats."""
    tokens: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss(Metric):
    """Mean cross-entropy of a token, in nats."""

    name: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    def partial(self, scored: TokensScored) -> Partial:
        """Sum and count."""
        return Partial(sums={"loss": np.array([scored.loss]), "tokens": np.array([float(scored.tokens)])})

    def value(self, partial: Partial) -> float:
        """Their quotient; nan without a token."""
        tokens = float(partial.sums["tokens"][0])
        return float(partial.sums["loss"][0]) / tokens if tokens else math.nan


@dataclass(frozen=True, kw_only=True)
class Perplexity(Metric):
    """exp of the mean cross-entropy: as unsure as a choice among so many equally likely tokens."""

    name: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    def partial(self, scored: TokensScored) -> Partial:
        """Sum and count of the cross-entropies."""
        return TokenLoss().partial(scored)

    def value(self, partial: Partial) -> float:
        """At most the largest float: a model may be that bad."""
        loss = TokenLoss().value(partial)
        return math.exp(min(loss, 709.0))
