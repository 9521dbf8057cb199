"""What losses of a positive item among negatives share: vectors of who asks and of what is offered, their scores.

One's own loss is a subclass, in any file: it says what each position costs, of its scores (`of_scores`) or of all that
there is (`compare`).

Shape legend: B rows, T positions, K negatives, E dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from rtrain.errors import ConfigError
from rtrain.metrics.state import Retrieved
from rtrain.objectives.catalogue import CatalogueTally
from rtrain.objectives.ranks import Ranks

FEW = 8
"""Candidates of a position up to which products are summed one by one: as a product of matrices 2 took twice as long, 5
took 1.4 times (one core)."""


@dataclass(frozen=True, kw_only=True)
class CandidateLoss:
    """Outputs: queries [B, T, E] and candidates [B, T, 1 + K, E], whose first is the positive of the position.

    A model may give a third, [B, T]: what it adds to the loss of each position.
    """

    link: ClassVar[None] = None
    """Who is asked about a whole catalogue answers with items, not with a number a row."""
    gives: ClassVar[Any] = Retrieved
    tallies: ClassVar[str] = "outputs"
    draws: ClassVar[bool] = True
    """Whether it compares with negatives that the data draw."""
    whole_batch: ClassVar[bool] = False
    """Whether it compares with what the other rows of the whole batch have, which microbatches would cut."""
    whole_catalogue: ClassVar[bool] = False
    """Whether it compares with all items, which the batch offers once (`Negatives(by="all")`)."""

    cosine: bool = False
    """Whether vectors are brought to length 1 before their product is the score."""
    temperature: float = 1.0
    """Scores are divided by it."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"model.objective.temperature: must be above 0, got {self.temperature}")
        own = type(self)
        if (own.of_scores, own.compare) == (CandidateLoss.of_scores, CandidateLoss.compare):
            raise ConfigError(
                f"model.objective: {own.__name__} does not say what a position costs. Define of_scores(scores) or "
                "compare(queries, candidates, target, ranks)"
            )

    def scores(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """[B, T, 1 + K]"""
        queries, candidates = self.compared(queries), self.compared(candidates)
        if candidates.shape[-2] <= FEW:
            return (candidates * queries.unsqueeze(-2)).sum(-1) / self.temperature
        return (candidates @ queries.unsqueeze(-1)).squeeze(-1) / self.temperature

    @property
    def powers(self) -> frozenset[float]:
        """Exponents of the popularity that it takes negatives to be drawn by, and corrects for."""
        return frozenset()

    def compared(self, vectors: Tensor) -> Tensor:
        """The vectors whose products are scores but for the temperature, which changes no order."""
        return normalize(vectors, dim=-1) if self.cosine else vectors

    def loss(self, outputs: tuple[Tensor, ...], target: Tensor, ranks: Ranks) -> Tensor:
        """Sum over the positions that have a positive; `target`: see `RetrievalBatch.target`."""
        queries, candidates, *added = outputs
        total = self.compare(queries, candidates, target, ranks)
        return total + sum(x.where(target[..., 0] >= 0, 0.0).sum() for x in added)

    def compare(self, queries: Tensor, candidates: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """Sum of what the positives cost among their negatives."""
        losses = self.of_scores(self.scores(queries, candidates))
        return losses.where(target[..., 0] >= 0, 0.0).sum()

    def of_scores(self, scores: Tensor) -> Tensor:
        """[B, T, 1 + K] -> the loss of each position, [B, T]."""
        raise NotImplementedError

    def tally(self, ranks: Ranks, metrics: Sequence[Any]) -> CatalogueTally:
        """For the scores of a split: the catalogue ranked for each user, as deep as the metrics look."""
        return CatalogueTally(self.compared, ranks, metrics)
