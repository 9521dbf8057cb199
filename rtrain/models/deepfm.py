"""DeepFM: a factorisation machine and an MLP over the same vectors (Guo et al., arXiv:1703.04247).

The machine's first-order weight of an id is column 0 of its table row, and the other `dim - 1` columns
are its latent vector: one lookup, and the weight is sharded with the vector whatever the layout.

Shape legend: B rows, D dense features, P columns of them, F id features, N = D + F fields, V = F * (1 + K),
K latent dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtrain.models.ranking import RankingConfig, check_dropout, check_sizes
from rtrain.nn.interaction import mlp
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class DeepFM(RankingConfig):
    """Factorisation machine plus MLP; each table row is a first-order weight and a vector of `dim - 1`."""

    deep: tuple[int, ...] = (64, 32)
    """Hidden sizes of the MLP."""
    dropout: float = 0.0
    """Dropout after each hidden layer of the MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(deep=self.deep)
        check_dropout(self.dropout)

    def dense_part(self, schema: Schema) -> nn.Module:
        """The machine's sums and the MLP."""
        dim = self.one_dim(schema)
        return DeepFMTower(self, dense=schema.dense_widths, ids=len(schema.ids), latent=dim - 1)


class DeepFMTower(nn.Module):
    """(dense [B, P], vectors [B, V]) -> logits [B]."""

    def __init__(self, config: DeepFM, *, dense: tuple[int, ...], ids: int, latent: int):
        super().__init__()
        self.ids, self.widths = ids, dense
        # A dense field has a weight and a vector too, which its value multiplies; an encoded one, one of each column.
        columns = sum(dense)
        self.dense_weight = nn.Parameter(torch.zeros(columns)) if dense else None
        self.dense_vectors = nn.Parameter(torch.randn(columns, latent) * latent**-0.5) if dense else None
        self.deep = mlp(((len(dense) + ids) * latent, *config.deep, 1), dropout=config.dropout, last_linear=True)

    def forward(self, dense_BP: Tensor, vectors_BV: Tensor) -> Tensor:
        """Logits [B]: first order + every pair of fields' dot product + MLP."""
        rows_BFE = vectors_BV.unflatten(1, (self.ids, -1))
        first_order_B, fields_BNK = rows_BFE[:, :, 0].sum(1), rows_BFE[:, :, 1:]
        if self.dense_weight is not None and self.dense_vectors is not None:
            first_order_B = first_order_B + dense_BP @ self.dense_weight
            columns_BPK = dense_BP.unsqueeze(2) * self.dense_vectors
            if len(self.widths) < columns_BPK.shape[1]:  # a field is the sum of its columns' vectors
                columns_BPK = torch.stack([x.sum(1) for x in columns_BPK.split(self.widths, dim=1)], dim=1)
            fields_BNK = torch.cat([columns_BPK, fields_BNK], dim=1)
        # The sum over pairs i < j is half of (square of the sum - sum of the squares).
        pairs_B = 0.5 * (fields_BNK.sum(1).square() - fields_BNK.square().sum(1)).sum(1)
        logits_B: Tensor = first_order_B + pairs_B + self.deep(fields_BNK.flatten(1)).squeeze(1)
        return logits_B
