"""DLRM: pairwise dot products between embeddings and a dense projection (Naumov et al., arXiv:1906.00091).

Shape legend: B rows, D dense features, F id features, E embedding dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtrain.errors import ConfigError
from rtrain.models.ranking import RankingConfig, check_dropout, check_sizes
from rtrain.nn.interaction import DotInteraction, mlp
from rtrain.nn.tables import Table, first_order
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class DLRM(RankingConfig):
    """Deep learning recommendation model: embeddings and dense features, mixed by dot products."""

    bottom: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP that projects the dense features to `dim`."""
    top: tuple[int, ...] = (64, 32)
    """Hidden sizes of the MLP that turns the interactions into a logit; none: a weighted sum."""
    first_order: bool = False
    """Whether each id has a weight too, which is added to the logit: what it says by itself."""
    dropout: float = 0.0
    """Dropout after each hidden layer of the top MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(bottom=self.bottom, top=self.top)
        check_dropout(self.dropout)

    def table_list(self, schema: Schema) -> tuple[Table, ...]:
        """See `RankingConfig`; those of the ids' own weights come last.

        Raises:
            ConfigError: as there, or the schema has a table of such a name already.
        """
        tables = super().table_list(schema)
        beside = tuple(first_order(table) for table in tables) if self.first_order else ()
        for table in beside:
            if table.name in schema.tables:
                raise ConfigError(f"model.first_order: the schema has a table {table.name!r} already. Rename it")
        return tables + beside

    def dense_part(self, schema: Schema) -> nn.Module:
        """The bottom MLP, the interaction and the top MLP."""
        if not schema.dense:
            raise ConfigError("model DLRM: the schema has no Dense feature for its bottom MLP. Add one")
        self.one_dim(schema)
        return DLRMTower(self, dense=sum(schema.dense_widths), vectors=len(schema.ids))


class DLRMTower(nn.Module):
    """(dense [B, D], vectors [B, F * E], of first order [B, F * 4]) -> logits [B]."""

    def __init__(self, config: DLRM, *, dense: int, vectors: int):
        super().__init__()
        self.bottom = mlp((dense, *config.bottom, config.dim))
        self.vectors = vectors
        self.interaction = DotInteraction(vectors + 1)
        pairs = (vectors + 1) * vectors // 2
        self.top = mlp((config.dim + pairs, *config.top, 1), dropout=config.dropout, last_linear=True)

    def forward(self, dense_BD: Tensor, vectors_BV: Tensor, weights_BW: Tensor | None = None) -> Tensor:
        """Logits [B]."""
        projected_BE = self.bottom(dense_BD)
        embeddings_BFE = vectors_BV.unflatten(1, (self.vectors, -1))
        pairs = self.interaction(torch.cat([projected_BE.unsqueeze(1), embeddings_BFE], dim=1))
        logits: Tensor = self.top(torch.cat([projected_BE, pairs], dim=1)).squeeze(1)
        return logits if weights_BW is None else logits + weights_BW.sum(1) / 2
