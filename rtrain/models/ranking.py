"""What every ranking model gives the rest of rtrain: a config with tables and `build()`, and a module in two parts.

The two parts are what makes layouts compose: `tables` (ids -> vectors) is sharded by TorchRec,
`tower` (tensors -> logits) is replicated or partitioned by DDP or ZeRO.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.nn.tables import Table
from rtrain.schema import Batch, Schema


class RankingModel(nn.Module):
    """A scorer of rows: `Batch` -> logits float32 [B]."""

    def __init__(self, tables: nn.Module, tower: nn.Module):
        super().__init__()
        self.tables = tables
        self.tower = tower

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B]; their sigmoid is the predicted probability."""
        logits: Tensor = self.tower(batch.dense, self.tables(batch.ids))
        return logits

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss of each row [B]: binary cross-entropy against the label, in nats."""
        return binary_cross_entropy_with_logits(logits, batch.label, reduction="none")


@dataclass(frozen=True, kw_only=True)
class RankingConfig(ABC):
    """Config of a `RankingModel`."""

    dim: int = 16
    """Embedding dim of every table."""

    def feature_names(self, schema: Schema) -> tuple[str, ...]:
        """The id features in the order of the tower's input."""
        return tuple(f.name for f in schema.ids)

    def table_list(self, schema: Schema) -> tuple[Table, ...]:
        """The embedding tables that the schema asks for."""
        return tuple(
            Table(
                name=name,
                rows=rows,
                dim=self.dim,
                features=tuple(f.name for f in schema.ids if f.table_name == name),
            )
            for name, rows in schema.tables.items()
        )

    @abstractmethod
    def tower(self, schema: Schema) -> nn.Module:
        """The dense part: (dense [B, D], vectors [B, F, dim]) -> logits [B]."""

    def build(self, schema: Schema, *, seed: int, table_device: torch.device | str = "cpu") -> RankingModel:
        """The model; the tower's weights are drawn from `seed`, the same at every layout.

        Tables on the `meta` device have shapes only: the sharding fills them.
        """
        from rtrain.nn.bags import Tables  # torchrec: seconds to import, and a config does without

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = self.tower(schema)
        return RankingModel(Tables(self.table_list(schema), self.feature_names(schema), table_device), tower)
