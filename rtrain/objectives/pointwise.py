"""Each row by itself: a probability for each label.

Shape legend: B rows, N rows of a split, L labels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.metrics.state import Floats, Scored
from rtrain.schema import Batch


@dataclass(frozen=True)
class Pointwise:
    """Binary cross-entropy of labels against logits; both [B], or [B, L] of several labels."""

    gives: ClassVar[Any] = Scored
    tallies: ClassVar[str] = "outputs"

    weights: tuple[float, ...] = (1.0,)
    """Factor on the loss of each label."""
    prefixes: tuple[str, ...] = ("",)
    """Of the names of each label's metrics."""

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 [B] in nats; of several labels the weighted sum.

        A label that a row does not have (nan) adds nothing. The mean is over all rows still, so that no rank needs
        to know how many rows of the others have it.
        """
        known = labels == labels
        losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none").where(known, 0.0)
        return losses @ losses.new_tensor(self.weights) if losses.dim() == 2 else losses

    def loss(self, logits: Tensor, labels: Tensor, ranks: object = None) -> Tensor:
        """Sum over the batch's rows; those that only pad have no label. `ranks`: a row's logits are on one rank."""
        return self.row_losses(logits, labels).sum()

    @staticmethod
    def link(logits: Tensor) -> Tensor:
        """float64 probability of label 1, in the logits' shape: float32 would round all that is close to 1 to it."""
        return logits.double().sigmoid()

    def tally(self, ranks: object, metrics: object) -> "RowTally":
        """For the scores of a split."""
        return RowTally(self.prefixes)


class RowTally:
    """Logits, labels and groups of every row."""

    def __init__(self, prefixes: tuple[str, ...]):
        self.prefixes = prefixes
        self.logits, self.labels = list[Floats](), list[Floats]()
        self.groups = list[NDArray[np.int64]]()

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Another batch."""
        self.logits.append(logits.double().cpu().numpy())
        self.labels.append(batch.label.double().cpu().numpy())
        self.groups.append(batch.group.cpu().numpy())

    def scored(self) -> tuple[dict[str, Scored], int]:
        """By label, without the rows that do not have it; and how many logits are not finite."""
        if not self.logits:  # a rank of a pipeline before the last
            nothing = Scored(logits=np.empty(0), labels=np.empty(0), groups=np.empty(0, np.int64))
            return dict.fromkeys(self.prefixes, nothing), 0
        logits_NL, labels_NL = (
            np.concatenate(parts).reshape(-1, len(self.prefixes)) for parts in (self.logits, self.labels)
        )
        groups_N = np.concatenate(self.groups)
        found = {}
        for task, prefix in enumerate(self.prefixes):
            known = ~np.isnan(labels_NL[:, task])
            found[prefix] = Scored(logits=logits_NL[known, task], labels=labels_NL[known, task], groups=groups_N[known])
        return found, sum(int(np.count_nonzero(~np.isfinite(one.logits))) for one in found.values())
