"""Each row by itself: a probability for each label, or a number.

Shape legend: B rows, N rows of a split, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from rtrain.batch import Batch
from rtrain.metrics.state import Floats, Scored, Valued
from rtrain.schema import Schema


@dataclass(frozen=True)
class Pointwise:
    """Binary cross-entropy of labels against logits; both [B], or [B, L] of several labels."""

    gives: ClassVar[Any] = Scored
    tallies: ClassVar[str] = "outputs"
    taught: ClassVar[bool] = False
    """Whether a teacher's logit follows the label in the target."""

    weights: tuple[float, ...] = (1.0,)
    """Factor on the loss of each label."""
    prefixes: tuple[str, ...] = ("",)
    """Of the names of each label's metrics."""
    weighted: bool = False
    """Whether the last column of the target is each row's weight (`Batch.target`)."""

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 [B], of cross-entropy in nats; of several labels the weighted sum.

        A label that a row does not have (nan) adds nothing. The mean is over all rows still, so that no rank needs
        to know how many rows of the others have it.
        """
        known = labels == labels
        losses = self.each(logits, labels.nan_to_num()).where(known, 0.0)
        return losses @ losses.new_tensor(self.weights) if losses.dim() == 2 else losses

    @staticmethod
    def each(logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each label by itself, in the logits' shape."""
        return binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def loss(self, logits: Tensor, target: Tensor, ranks: object = None) -> Tensor:
        """Sum over the batch's rows, each times its weight where there are weights; those that only pad have no label.

        `target`: as `Batch.target`. `ranks`: a row's logits are on one rank.
        """
        if not self.weighted:
            return self.row_losses(logits, target).sum()
        return self.row_losses(logits, target[:, :-1].squeeze(1)) @ target[:, -1]

    @staticmethod
    def link(logits: Tensor) -> Tensor:
        """float64 probability of label 1, in the logits' shape: float32 would round all that is close to 1 to it."""
        return logits.double().sigmoid()

    def tally(self, ranks: object, metrics: object) -> "RowTally":
        """For the scores of a split, in which every row counts as 1 whatever its weight."""
        return RowTally(self.prefixes, self.scored)

    @staticmethod
    def scored(logits: Floats, labels: Floats, groups: NDArray[np.int64], rows: NDArray[np.int64]) -> Any:
        """What metrics take, of one label of float64 [n] rows."""
        return Scored(logits=logits, labels=labels, groups=groups, rows=rows)


@dataclass(frozen=True)
class SquaredError(Pointwise):
    """Squared difference of label and output, for labels that are numbers; both [B], or [B, L] of several labels.

    The output is the prediction, so its mean is as far from 0 as the labels' is: the last layer's bias has to learn it.
    """

    gives: ClassVar[Any] = Valued

    @staticmethod
    def each(outputs: Tensor, labels: Tensor) -> Tensor:
        """Squared difference, not halved."""
        return mse_loss(outputs, labels, reduction="none")

    @staticmethod
    def link(outputs: Tensor) -> Tensor:
        """The same numbers as float64."""
        return outputs.double()

    @staticmethod
    def scored(outputs: Floats, labels: Floats, groups: NDArray[np.int64], rows: NDArray[np.int64]) -> Valued:
        """What metrics take; numbers are not ranked in groups."""
        return Valued(predicted=outputs, labels=labels, groups=groups, rows=rows)


def pointwise(schema: Schema, weights: tuple[float, ...] = ()) -> Pointwise:
    """The objective for a schema's kind of label; `weights`: of each label's loss, none: 1 each."""
    kind = SquaredError if schema.predicts_numbers else Pointwise
    return kind(weights or (1.0,) * len(schema.labels), schema.metric_prefixes, bool(schema.weight))


class RowTally:
    """Outputs, labels, groups and numbers of every row."""

    def __init__(
        self,
        prefixes: tuple[str, ...],
        scored: Callable[[Floats, Floats, NDArray[np.int64], NDArray[np.int64]], Any],
    ):
        self.prefixes, self.scored_as = prefixes, scored
        self.logits, self.labels = list[Floats](), list[Floats]()
        self.groups, self.rows = list[NDArray[np.int64]](), list[NDArray[np.int64]]()

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Another batch."""
        self.logits.append(logits.double().cpu().numpy())
        self.labels.append(batch.label.double().cpu().numpy())
        self.groups.append(batch.group.cpu().numpy())
        self.rows.append(batch.row.cpu().numpy())

    def scored(self) -> tuple[dict[str, Any], int]:
        """By label, without the rows that do not have it; and how many outputs are not finite."""
        if not self.logits:  # a rank of a pipeline before the last
            nothing = self.scored_as(np.empty(0), np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
            return dict.fromkeys(self.prefixes, nothing), 0
        logits_NL, labels_NL = (
            np.concatenate(parts).reshape(-1, len(self.prefixes)) for parts in (self.logits, self.labels)
        )
        groups_N, rows_N = np.concatenate(self.groups), np.concatenate(self.rows)
        found, broken = {}, 0
        for task, prefix in enumerate(self.prefixes):
            known = ~np.isnan(labels_NL[:, task])
            found[prefix] = self.scored_as(
                logits_NL[known, task], labels_NL[known, task], groups_N[known], rows_N[known]
            )
            broken += int(np.count_nonzero(~np.isfinite(logits_NL[known, task])))
        return found, broken
