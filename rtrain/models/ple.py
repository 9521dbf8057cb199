"""PLE: shared experts beside each task's own, in levels (Tang et al., RecSys 2020, doi.org/10.1145/3383313.3412236).

Shape legend: B rows, D dense features, V the dims of all features' vectors together, L labels, N experts, H their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtrain.errors import ConfigError
from rtrain.models.multitask import MultiTaskConfig, TaskTowers
from rtrain.models.ranking import check_sizes
from rtrain.nn.experts import Experts, Gate
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class PLE(MultiTaskConfig):
    """Progressive layered extraction; with one level it is CGC, customised gate control."""

    levels: int = 2
    """Extraction levels, one on the other."""
    shared_experts: int = 2
    """Experts that all tasks use, in each level."""
    task_experts: int = 2
    """Experts of each task's own, in each level."""
    expert: tuple[int, ...] = (64, 32)
    """Layer sizes of each expert; the last is H."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(expert=self.expert)
        if min(self.levels, self.shared_experts, self.task_experts) < 1 or not self.expert:
            raise ConfigError(
                "model: levels, shared_experts and task_experts must be at least 1, and expert must have a layer"
            )

    def dense_part(self, schema: Schema) -> nn.Module:
        """The levels and the tasks' towers."""
        return PLETower(self, width=sum(schema.dense_widths) + self.width(schema), tasks=len(schema.labels))


class PLETower(nn.Module):
    """(dense [B, D], vectors [B, V]) -> logits [B, L]."""

    def __init__(self, config: PLE, *, width: int, tasks: int):
        super().__init__()
        self.tasks = tasks
        widths = [width] + [config.expert[-1]] * (config.levels - 1)
        self.levels = nn.ModuleList(
            Extraction(config, width=inputs, tasks=tasks, last=level == config.levels - 1)
            for level, inputs in enumerate(widths)
        )
        self.towers = TaskTowers(tasks, (config.expert[-1], *config.towers), dropout=config.dropout)

    def forward(self, dense_BD: Tensor, vectors_BV: Tensor) -> Tensor:
        """Logits [B, L]."""
        x = torch.cat([dense_BD, vectors_BV], dim=1)
        mixed = [x] * (self.tasks + 1)
        for level in self.levels:
            mixed = level(mixed)
        logits: Tensor = self.towers(mixed)
        return logits


class Extraction(nn.Module):
    """One level: for each task a mixture of its own and the shared experts; then one of all, for the next level.

    Inputs and outputs are in the order task 1 .. task L, shared; the last level has no shared output.
    """

    def __init__(self, config: PLE, *, width: int, tasks: int, last: bool):
        super().__init__()
        sizes, own, shared = (width, *config.expert), config.task_experts, config.shared_experts
        counts = [own] * tasks + [shared]
        self.experts = nn.ModuleList(Experts(n, sizes, dropout=config.dropout) for n in counts)
        self.gates = nn.ModuleList(Gate(width, own + shared) for _ in range(tasks))
        self.shared_gate = None if last else Gate(width, sum(counts))

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """L tensors [B, H], and one more where a level follows."""
        all_BNH = [experts(x) for experts, x in zip(self.experts, inputs, strict=True)]
        mixed = [
            gate(x, torch.cat([own_BNH, all_BNH[-1]], dim=1))
            for gate, x, own_BNH in zip(self.gates, inputs[:-1], all_BNH[:-1], strict=True)
        ]
        if self.shared_gate is not None:
            mixed.append(self.shared_gate(inputs[-1], torch.cat(all_BNH, dim=1)))
        return mixed
