"""The positive above each negative, pair by pair."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from rtrain.objectives.candidate_loss import CandidateLoss


@dataclass(frozen=True, kw_only=True)
class BPR(CandidateLoss):
    """Pairwise: the positive above each negative, logistic loss of the difference (Rendle et al., arXiv:1205.2618)."""

    def of_scores(self, scores: Tensor) -> Tensor:
        """Mean over the negatives."""
        return -logsigmoid(scores[..., :1] - scores[..., 1:]).mean(-1)
