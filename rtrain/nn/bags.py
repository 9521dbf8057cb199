"""The module that looks ids up: TorchRec's collections of pooled and of unpooled tables behind a stable face.

Jagged ids in, plain tensors out, in the order of the features whatever the sharding plan (the order
inside TorchRec's KeyedTensor depends on the plan, so it is read by key).

Shape legend: B rows, E embedding dim, V the dims of all single vectors together, T longest sequence of the batch.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)
from torchrec.types import DataType

from rtrain.batch import NONE, Jagged
from rtrain.nn.managed import ManagedIds
from rtrain.nn.tables import VECTORS, WEIGHTS, Table, mask, sequence

KEPT = {"float32": DataType.FP32, "float16": DataType.FP16}


class Tables(nn.Module):
    """Looks up every feature: `Jagged` -> by name (`nn.tables`) vectors [B, V], and of a sequence [B, T, E] and [B, T].

    V holds one vector a feature, side by side in declared order. A table that some feature reads as a sequence is
    looked up without pooling, and its other features become one vector here. All others are summed by fbgemm; a mean
    is made of the sum here, since its own takes ten times as long on CPU. Where a feature has weights all pooled ones
    have, the others of 1: one lookup, whose sums those do not change.
    """

    def __init__(
        self,
        tables: tuple[Table, ...],
        features: tuple[str, ...],
        device: torch.device | str = "cpu",
        *,
        as_kept: bool = False,
    ):
        """`as_kept`: weights of each table's `dtype`, which a sharding's kernels read; else all float32, as torch's."""
        super().__init__()
        pooled, unpooled = [t for t in tables if not t.sequences], [t for t in tables if t.sequences]
        several = Counter(f for t in pooled for f in t.features)
        # TorchRec's own name of what a table gives for a feature that has two tables.
        named = {(f, t.beside): f"{f}@{t.name}" if several[f] > 1 else f for t in pooled for f in t.features}
        self.named = {f: named.get((f, False), f) for f in features}
        self.beside = [named[f, True] for f in features if (f, True) in named]
        sequences = {f for t in unpooled for f in t.sequences}
        self.single = [f for f in features if f not in sequences]
        self.several = [f for f in features if f in sequences]
        weighted = {f for t in pooled for f in t.weighted}
        self.weighted = bool(weighted)
        self.shared = weighted & {f for t in pooled for f in t.means}
        """Features whose weights are divided by those of the row."""
        # The features of each collection in its own order, which is the order that it is handed them in.
        averaged = [(t, f) for t in tables for f in t.means if f not in {*t.sequences, *self.shared}]
        self.means = {named.get((f, t.beside), f): f for t, f in averaged}
        """What is divided by how many ids a row has: name of the sum -> feature."""
        self.pooled_features = list(several)
        self.unpooled_features = [f for t in unpooled for f in t.features]
        self._kept = dict[Any, Tensor]()
        self.managed: ManagedIds | None = None
        if not as_kept and any(t.managed for t in tables):  # those of a sharding are on their way as rows already
            self.managed = ManagedIds(tables, device)
        self.bags: nn.Module | None = None
        self.sequences: nn.Module | None = None
        if pooled:
            self.bags = EmbeddingBagCollection(
                tables=[
                    EmbeddingBagConfig(
                        name=t.name,
                        num_embeddings=t.rows,
                        embedding_dim=t.dim,
                        feature_names=list(t.features),
                        pooling=PoolingType.SUM,
                        data_type=KEPT[t.dtype if as_kept else "float32"],
                    )
                    for t in pooled
                ],
                is_weighted=self.weighted,
                device=torch.device(device),
            )
        if unpooled:
            self.sequences = EmbeddingCollection(
                tables=[
                    EmbeddingConfig(
                        name=t.name,
                        num_embeddings=t.rows,
                        embedding_dim=t.dim,
                        feature_names=list(t.features),
                        data_type=KEPT[t.dtype if as_kept else "float32"],
                    )
                    for t in unpooled
                ],
                device=torch.device(device),
            )

    def forward(self, ids: Jagged, longest: Mapping[str, int] = NONE) -> dict[str, Tensor]:
        """One vector a feature, and the sequences; a row without ids gives zeros and an empty mask.

        `longest`: T of a sequence, where it is not to be that of the longest row.
        """
        if self.managed is not None:
            ids = self.managed(ids)
        found = [collection(given) for collection, given in self.given(ids)]
        return self.named_of(ids, found, longest)

    def given(self, ids: Jagged) -> list[tuple[Any, KeyedJaggedTensor]]:
        """TorchRec's modules that look up, and what each is handed."""
        weights = self.shares(ids)
        both = ((self.bags, self.pooled_features, weights), (self.sequences, self.unpooled_features, None))
        return [(one, self._only(to_kjt(ids, weights), of)) for one, of, weights in both if one is not None]

    def _only(self, kjt: KeyedJaggedTensor, features: list[str]) -> KeyedJaggedTensor:
        """Those features; without a copy where it is all of them in their order."""
        keys = kjt.keys()
        if keys == features:
            return kjt
        at = [keys.index(f) for f in features]
        return kjt.permute(at, self._there(at, torch.int32, kjt.device()))

    def _there(self, values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
        """On the device, and kept: every copy of them would be waited for."""
        key = (*values, dtype, device)
        if key not in self._kept:
            self._kept[key] = torch.tensor(values, dtype=dtype, device=device)
        return self._kept[key]

    def shares(self, ids: Jagged) -> Tensor | None:
        """float32 [sum of lengths]: by what a sum is a mean, where that is wanted; none: ids have no weights."""
        if not self.weighted:
            return None
        assert ids.weights is not None, "a schema that has weights gives every batch some"
        if not self.shared:
            return ids.weights
        sizes, lengths = ids.weights.abs().double(), ids.lengths.long()
        # In float64 no sum of float32's overflows. Of weights that are all 0 there is no mean, and 0 is given.
        sums = torch.segment_reduce(sizes, "sum", lengths=lengths, unsafe=True)  # else lengths are read, to check them
        shared = self._there([f in self.shared for f in ids.keys], torch.bool, sums.device)
        sums = torch.where(shared.repeat_interleave(len(lengths) // len(ids.keys)) & (sums > 0), sums, 1.0)
        return (ids.weights / sums.repeat_interleave(lengths, output_size=len(sizes))).float()

    def named_of(self, ids: Jagged, of_collections: list[Any], longest: Mapping[str, int]) -> dict[str, Tensor]:
        """As `forward`, of what the `collections` gave."""
        found: dict[str, Tensor] = {}
        padded: dict[str, tuple[Tensor, Tensor]] = {}
        if self.bags is not None:
            found |= cast(KeyedTensor, of_collections[0]).to_dict()
        if self.sequences is not None:
            looked_up = cast(dict[str, JaggedTensor], of_collections[-1])
            most = ids.longest | dict(longest)
            padded = {f: _padded(looked_up[f], most[f]) for f in self.unpooled_features}
        for feature in self.single:
            if feature in padded:
                found[self.named[feature]] = padded[feature][0].sum(1)
        rows = len(ids.lengths) // len(ids.keys)
        lengths_FB = ids.lengths.view(len(ids.keys), rows)
        for name, feature in self.means.items():
            found[name] = found[name] / lengths_FB[ids.keys.index(feature)].clamp(min=1).unsqueeze(1)
        nothing = ids.lengths.new_empty(rows, 0, dtype=torch.float32)  # where every feature is read as a sequence
        given = {VECTORS: torch.cat([nothing, *(found[self.named[f]] for f in self.single)], dim=1)}
        if self.beside:
            given[WEIGHTS] = torch.cat([found[name] for name in self.beside], dim=1)
        for f in self.several:
            given[sequence(f)], given[mask(f)] = padded[f]
        return given


def _padded(jagged: JaggedTensor, longest: int) -> tuple[Tensor, Tensor]:
    """Vectors float32 [B, T, E], zero behind each row's end, and where they are real, bool [B, T]; T is `longest`."""
    lengths_B = jagged.lengths()
    values: Tensor = torch.ops.fbgemm.jagged_to_padded_dense(jagged.values(), [jagged.offsets()], [longest], 0.0)
    return values, torch.arange(longest, device=values.device) < lengths_B.unsqueeze(1)


def to_kjt(ids: Jagged, weights: Tensor | None = None) -> KeyedJaggedTensor:
    """TorchRec's view of the same memory, which knows what it would ask the device for; `weights`: float32 [sum of
    lengths]."""
    return KeyedJaggedTensor(
        keys=list(ids.keys),
        values=ids.values,
        lengths=ids.lengths,
        weights=weights,
        length_per_key=list(ids.per_key),
    )
