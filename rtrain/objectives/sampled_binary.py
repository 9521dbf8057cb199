"""Each candidate by itself: had, or not."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from rtrain.objectives.candidate_loss import CandidateLoss


@dataclass(frozen=True, kw_only=True)
class SampledBinary(CandidateLoss):
    """Binary cross-entropy of positive and negatives, as SASRec is trained (Kang & McAuley, arXiv:1808.09781)."""

    def of_scores(self, scores: Tensor) -> Tensor:
        """The positive's, and the mean over the negatives."""
        return -logsigmoid(scores[..., 0]) - logsigmoid(-scores[..., 1:]).mean(-1)
