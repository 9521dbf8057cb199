"""Each row by itself: a probability for each label.

Shape legend: B rows, N rows of a split, L labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.metrics.state import Floats, Scored
from rtrain.schema import Batch


@dataclass(frozen=True)
class Pointwise:
    """Binary cross-entropy of labels against logits; both [B], or [B, L] of several labels."""

    weights: tuple[float, ...] = (1.0,)
    """Factor on the loss of each label."""

    def row_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """float32 [B] in nats; of several labels the weighted sum.

        A label that a row does not have adds nothing. The mean is over all rows still, so that no rank needs
        to know how many rows of the others have it.
        """
        known = batch.label == batch.label
        losses = binary_cross_entropy_with_logits(logits, batch.label.nan_to_num(), reduction="none").where(known, 0.0)
        return losses @ losses.new_tensor(self.weights) if losses.dim() == 2 else losses

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum over the batch's rows, but for those that only pad; the mean is over `batch.loss_units`."""
        return (self.row_losses(logits, batch) * batch.real).sum()

    @staticmethod
    def link(logits: Tensor) -> Tensor:
        """float64 probability of label 1, in the logits' shape: float32 would round all that is close to 1 to it."""
        return logits.double().sigmoid()

    @staticmethod
    def scored(
        logits_NL: Floats, labels_NL: Floats, groups_N: NDArray[np.int64], prefixes: tuple[str, ...]
    ) -> dict[str, Scored]:
        """What metrics take of each label, by the prefix of their names; rows without the label are out."""
        found = {}
        for task, prefix in enumerate(prefixes):
            known = ~np.isnan(labels_NL[:, task])
            found[prefix] = Scored(logits=logits_NL[known, task], labels=labels_NL[known, task], groups=groups_N[known])
        return found
