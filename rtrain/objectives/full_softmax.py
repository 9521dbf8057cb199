"""The positive among all items.

Shape legend: B rows, T positions, K items that a position has of the catalogue, N positions of this rank that have a
positive, I items of the catalogue, E dim.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.ranks import Ranks, filled

BLOCK_SCORES = 1 << 24
"""Scores held at once, 64 MiB of float32; of more the backward pass computes them again, block by block."""


@dataclass(frozen=True, kw_only=True)
class FullSoftmax(CandidateLoss):
    """Cross-entropy of the positive among every item of the data (GRU4Rec and BERT4Rec are trained so).

    Each position of the global batch has a piece of the catalogue among its candidates (`Negatives(by="all")`), whose
    vectors are gathered over ranks, with gradients: each item's vector is computed once a batch, and the loss does not
    depend on the number of ranks. A step costs positions x items.
    """

    whole_batch: ClassVar[bool] = True
    whole_catalogue: ClassVar[bool] = True

    def compare(self, queries: Tensor, candidates: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """Sum over this rank's positions, in nats."""
        here = target[..., 0] >= 0
        asked_NE, offered_NKE = self.compared(queries[here]), self.compared(candidates[here])
        positive_N = (asked_NE * offered_NKE[:, 0]).sum(1) / self.temperature
        own_E = offered_NKE[:, 1:][target[..., 2 : 1 + candidates.shape[-2]][here] >= 0]
        longest = ranks.most(own_E)
        real = ranks.gather(filled(target.new_ones(len(own_E), dtype=torch.bool), longest, False))
        all_IE = ranks.gather_with_gradient(filled(own_E, longest, 0.0))[real]
        block = max(1, BLOCK_SCORES // max(1, len(all_IE)))
        total = -positive_N.sum()
        for asked in asked_NE.split(block):
            total = total + (self._sums if len(asked_NE) <= block else self._again)(asked, all_IE)
        return total

    def _again(self, asked_NE: Tensor, all_IE: Tensor) -> Tensor:
        found: Tensor = checkpoint(self._sums, asked_NE, all_IE, use_reentrant=False)
        return found

    def _sums(self, asked_NE: Tensor, all_IE: Tensor) -> Tensor:
        """Of some positions, the logarithms of all items' exponents, summed."""
        return (asked_NE @ all_IE.T / self.temperature).logsumexp(1).sum()
