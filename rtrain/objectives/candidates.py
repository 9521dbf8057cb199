"""Losses of a positive item among negatives, by the vectors of who asks and of what is offered.

Shape legend: B rows, T positions, K negatives, E dim.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from rtrain.errors import ConfigError
from rtrain.metrics.state import Retrieved
from rtrain.objectives.catalogue import CatalogueTally
from rtrain.objectives.ranks import Ranks, filled

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
    """Whether it compares with the positives of the whole batch, which microbatches would cut."""

    cosine: bool = False
    """Whether vectors are brought to length 1 before their product is the score."""
    temperature: float = 1.0
    """Scores are divided by it."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"model.objective.temperature: must be above 0, got {self.temperature}")

    def scores(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """[B, T, 1 + K]"""
        queries, candidates = self.compared(queries), self.compared(candidates)
        if candidates.shape[-2] <= FEW:
            return (candidates * queries.unsqueeze(-2)).sum(-1) / self.temperature
        return (candidates @ queries.unsqueeze(-1)).squeeze(-1) / self.temperature

    def compared(self, vectors: Tensor) -> Tensor:
        """The vectors whose products are scores but for the temperature, which changes no order."""
        return normalize(vectors, dim=-1) if self.cosine else vectors

    def loss(self, outputs: tuple[Tensor, ...], target: Tensor, ranks: Ranks) -> Tensor:
        """Sum over the positions that have a positive; `target` [B, T, 2]: it, and how often it was had."""
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

    def tally(self, ranks: Ranks, metrics: Iterable[Any]) -> CatalogueTally:
        """For the scores of a split: the catalogue ranked for each user, as deep as the metrics look."""
        return CatalogueTally(self.compared, ranks, depth=max(metric.k for metric in metrics))


@dataclass(frozen=True, kw_only=True)
class BPR(CandidateLoss):
    """Pairwise: the positive above each negative, logistic loss of the difference (Rendle et al., arXiv:1205.2618)."""

    def of_scores(self, scores: Tensor) -> Tensor:
        """Mean over the negatives."""
        return -logsigmoid(scores[..., :1] - scores[..., 1:]).mean(-1)


@dataclass(frozen=True, kw_only=True)
class SampledBinary(CandidateLoss):
    """Binary cross-entropy of positive and negatives, as SASRec is trained (Kang & McAuley, arXiv:1808.09781)."""

    def of_scores(self, scores: Tensor) -> Tensor:
        """The positive's, and the mean over the negatives."""
        return -logsigmoid(scores[..., 0]) - logsigmoid(-scores[..., 1:]).mean(-1)


@dataclass(frozen=True, kw_only=True)
class SampledSoftmax(CandidateLoss):
    """Cross-entropy of the positive among itself and the negatives (Jean et al., arXiv:1412.2007).

    With uniform negatives no correction is due: a constant in each score changes no softmax.
    """

    def of_scores(self, scores: Tensor) -> Tensor:
        """In nats."""
        flat = scores.flatten(0, -2)
        first = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        return cross_entropy(flat, first, reduction="none").view(scores.shape[:-1])


@dataclass(frozen=True, kw_only=True)
class InBatchSoftmax(CandidateLoss):
    """Cross-entropy of the positive among all positives of the *global* batch (Yi et al., RecSys 2019).

    The vectors of other ranks' positives are gathered, with gradients, so that the loss does not depend on the number
    of ranks. Left out as negatives: the same item at another position, and what only pads. Needs no drawn negatives.
    """

    draws: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    correction: bool = True
    """Take the logarithm of an item's popularity from its score as a negative or positive: batches hold it so often."""

    def compare(self, queries: Tensor, candidates: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """Sum over this rank's positions."""
        here = target[..., 0] >= 0
        asked_NE, offered_NE = self.compared(queries[here]), self.compared(candidates[..., 0, :][here])
        facts_N2 = target[here]
        longest = int(ranks.gather(target.new_tensor([len(facts_N2)])).max())
        all_ME = ranks.gather_with_gradient(filled(offered_NE, longest, 0.0))
        all_M2 = ranks.gather(filled(facts_N2, longest, -1))
        scores_NM = asked_NE @ all_ME.T / self.temperature
        if self.correction:
            scores_NM = scores_NM - all_M2[:, 1].clamp(min=1).log()
        own_N = ranks.data_index * longest + torch.arange(len(facts_N2), device=target.device)
        out_NM = (all_M2[:, 0] < 0) | (all_M2[:, 0] == facts_N2[:, :1])
        out_NM[torch.arange(len(own_N)), own_N] = False
        return cross_entropy(scores_NM.masked_fill(out_NM, -torch.inf), own_N, reduction="sum")
