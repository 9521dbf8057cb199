"""The positive among all positives of the batch.

Shape legend: B rows, T positions, K negatives of a position, N positions of this rank and M of all that have a
positive, U different items of these, X items that a user is known to have had, E dim.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.ranks import Ranks, filled


@dataclass(frozen=True, kw_only=True)
class InBatchSoftmax(CandidateLoss):
    """Cross-entropy of the positive among all positives of the *global* batch (Yi et al., RecSys 2019).

    The vectors of other ranks' positives are gathered, with gradients, so that the loss does not depend on the number
    of ranks. Left out as negatives: what the position's user had in training, the same item at another position, and
    what only pads. Needs no drawn negatives.
    """

    draws: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    correction: bool = True
    """Take the logarithm of an item's popularity from its score as a negative or positive: batches hold it so often."""

    def compare(self, queries: Tensor, candidates: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """Sum over this rank's positions."""
        here = target[..., 0] >= 0
        asked_NE, offered_NE = self.compared(queries[here]), self.compared(candidates[..., 0, :][here])
        facts_N2 = target[..., :2][here]
        longest = ranks.most(facts_N2)
        all_ME = ranks.gather_with_gradient(filled(offered_NE, longest, 0.0))
        all_M2 = ranks.gather(filled(facts_N2, longest, -1))
        scores_NM = asked_NE @ all_ME.T / self.temperature
        if self.correction:
            scores_NM = scores_NM - all_M2[:, 1].clamp(min=1).log()
        own_N = ranks.data_index * longest + torch.arange(len(facts_N2), device=target.device)
        known_BX = target[..., 1 + candidates.shape[-2] :].flatten(1).contiguous()
        out_NM = (all_M2[:, 0] < 0) | (all_M2[:, 0] == facts_N2[:, :1])
        out_NM |= had(all_M2[:, 0], known_BX)[here.nonzero()[:, 0]]
        out_NM[torch.arange(len(own_N)), own_N] = False
        return cross_entropy(scores_NM.masked_fill(out_NM, -torch.inf), own_N, reduction="sum")


def had(items_M: Tensor, known_BX: Tensor) -> Tensor:
    """bool [B, M]: whether an item is among those that a row is known to have had; -1 is none."""
    items_U, which_M = items_M.unique(return_inverse=True)
    at_BX = torch.searchsorted(items_U, known_BX).clamp(max=len(items_U) - 1)
    there_BX = (items_U[at_BX] == known_BX) & (known_BX >= 0)
    had_BU = torch.zeros(len(known_BX), len(items_U), dtype=torch.bool, device=items_M.device)
    had_BU[there_BX.nonzero()[:, 0], at_BX[there_BX]] = True
    return had_BU[:, which_M]
