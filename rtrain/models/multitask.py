"""What models of several tasks share: one logit for each of the schema's labels, and a weight for each task's loss.

Shape legend: B rows, L labels, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rtrain.errors import ConfigError
from rtrain.models.ranking import RankingConfig, check_dropout, check_sizes
from rtrain.nn.interaction import mlp
from rtrain.objectives.pointwise import Pointwise, pointwise
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class MultiTaskConfig(RankingConfig):
    """Config of a model that predicts all labels of the schema."""

    several_labels: ClassVar[bool] = True

    task_weights: tuple[float, ...] = ()
    """Factor on each label's loss, in the schema's order; empty: 1 each."""
    towers: tuple[int, ...] = (32,)
    """Hidden sizes of each task's own MLP."""
    dropout: float = 0.0
    """Dropout after each hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(towers=self.towers)
        check_dropout(self.dropout)
        if min(self.task_weights, default=0.0) < 0 or (self.task_weights and not sum(self.task_weights) > 0):
            raise ConfigError(
                f"model.task_weights: none may be negative and one must be positive, got {self.task_weights}"
            )

    def objective(self, schema: Schema) -> Pointwise:
        """Each label's loss times its weight.

        Raises:
            ConfigError: another number of weights than of labels.
        """
        if self.task_weights and len(self.task_weights) != len(schema.labels):
            names = ", ".join(label.name for label in schema.labels)
            raise ConfigError(
                f"model.task_weights: {len(self.task_weights)} weights for the labels {names}. Give one for each"
            )
        return pointwise(schema, self.task_weights)


class TaskTowers(nn.Module):
    """Each task's own MLP over its own input: L tensors [B, H] -> logits [B, L]."""

    def __init__(self, tasks: int, sizes: Sequence[int], *, dropout: float):
        super().__init__()
        self.each = nn.ModuleList(mlp((*sizes, 1), dropout=dropout, last_linear=True) for _ in range(tasks))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits [B, L]."""
        return torch.cat([tower(x_BH) for tower, x_BH in zip(self.each, inputs, strict=True)], dim=1)
