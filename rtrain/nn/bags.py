"""The module that looks ids up and pools them: TorchRec's EmbeddingBagCollection behind a stable face.

Jagged ids in, one tensor out, in the order of the features whatever the sharding plan (the order
inside TorchRec's KeyedTensor depends on the plan, so it is read by key).

Shape legend: B rows, F features, E embedding dim.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from rtrain.nn.tables import Table
from rtrain.schema import Jagged


class Tables(nn.Module):
    """Looks up and pools every feature: `Jagged` -> float32 [B, F, E], features in declared order."""

    def __init__(self, tables: tuple[Table, ...], features: tuple[str, ...], device: torch.device | str = "cpu"):
        super().__init__()
        self.features = list(features)
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=t.name,
                    num_embeddings=t.rows,
                    embedding_dim=t.dim,
                    feature_names=list(t.features),
                    pooling=PoolingType[t.pooling.upper()],
                )
                for t in tables
            ],
            device=torch.device(device),
        )

    def forward(self, ids: Jagged) -> Tensor:
        """One pooled embedding a feature; a row without ids gives zeros."""
        pooled = cast(KeyedTensor, self.bags(to_kjt(ids)))
        by_key = pooled.to_dict()
        return torch.stack([by_key[f] for f in self.features], dim=1)


def to_kjt(ids: Jagged) -> KeyedJaggedTensor:
    """TorchRec's view of the same memory."""
    return KeyedJaggedTensor(keys=list(ids.keys), values=ids.values, lengths=ids.lengths)
