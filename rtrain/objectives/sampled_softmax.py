"""The positive among drawn negatives, as one choice of all candidates."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rtrain.errors import ConfigError
from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class SampledSoftmax(CandidateLoss):
    """Cross-entropy of the positive among itself and the negatives (Jean et al., arXiv:1412.2007).

    With uniform negatives no correction is due: a constant in each score changes no softmax.
    """

    correction: float = 0.0
    """Take so many times the logarithm of an item's popularity from its score: `data.negatives.power`, where negatives
    are drawn by popularity, so that the loss estimates the one over all items (logQ); 0: nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.correction < inf:
            raise ConfigError(f"model.objective.correction: must be at least 0, got {self.correction}")

    @property
    def powers(self) -> frozenset[float]:
        """As `CandidateLoss`."""
        return frozenset({self.correction} if self.correction else {})

    def compare(self, queries: Tensor, candidates: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """As `CandidateLoss`, after the correction."""
        scores = self.scores(queries, candidates)
        if self.correction:
            often = target[..., 1 : 1 + scores.shape[-1]]
            scores = scores - self.correction * often.clamp(min=1).log()
        return self.of_scores(scores).where(target[..., 0] >= 0, 0.0).sum()

    def of_scores(self, scores: Tensor) -> Tensor:
        """In nats."""
        flat = scores.flatten(0, -2)
        first = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        return cross_entropy(flat, first, reduction="none").view(scores.shape[:-1])
