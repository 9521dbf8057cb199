"""MMoE: shared experts, mixed by a gate for each task (Ma et al., KDD 2018, doi.org/10.1145/3219819.3220007).

Shape legend: B rows, D dense features, V the dims of all features' vectors together, L labels, N experts, H their size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtrain.errors import ConfigError
from rtrain.models.multitask import MultiTaskConfig, TaskTowers
from rtrain.models.ranking import check_sizes
from rtrain.nn.experts import Experts, Gate
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class MMoE(MultiTaskConfig):
    """Multi-gate mixture of experts."""

    experts: int = 4
    """Experts, shared by all tasks."""
    expert: tuple[int, ...] = (64, 32)
    """Layer sizes of each expert; the last is H."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(expert=self.expert)
        if self.experts < 1 or not self.expert:
            raise ConfigError("model: experts must be at least 1, and expert must have a layer")

    def dense_part(self, schema: Schema) -> nn.Module:
        """Experts, gates and the tasks' towers."""
        return MMoETower(self, width=sum(schema.dense_widths) + self.width(schema), tasks=len(schema.labels))


class MMoETower(nn.Module):
    """(dense [B, D], vectors [B, V]) -> logits [B, L]."""

    def __init__(self, config: MMoE, *, width: int, tasks: int):
        super().__init__()
        self.experts = Experts(config.experts, (width, *config.expert), dropout=config.dropout)
        self.gates = nn.ModuleList(Gate(width, config.experts) for _ in range(tasks))
        self.towers = TaskTowers(tasks, (config.expert[-1], *config.towers), dropout=config.dropout)

    def forward(self, dense_BD: Tensor, vectors_BV: Tensor) -> Tensor:
        """Logits [B, L]."""
        x = torch.cat([dense_BD, vectors_BV], dim=1)
        experts_BNH = self.experts(x)
        logits: Tensor = self.towers([gate(x, experts_BNH) for gate in self.gates])
        return logits
