"""Lookups by plain gathers, as a program of an export has them: of fewer operators than TorchRec's, and of other kinds
of weights. What is looked up is what `nn.bags.Tables` gives, whose lists are not padded and need less memory.

    ids        int64 [F, B]    of the features that have one id a row, in their order
    ids.F      int64 [B, T]    of a list, 0 behind each row's end
    share.F    float32 [B, T]  of a list that is pooled: by how much each vector counts, 0 behind the row's end
    mask.F     bool [B, T]     of a sequence: where it is real

Shape legend: F features, B rows, T longest list of the batch, E embedding dim.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from rtrain.batch import Jagged
from rtrain.nn.tables import VECTORS, WEIGHTS, Table, mask, sequence

IDS = "ids"


def ids_of(feature: str) -> str:
    """Name of a list's ids."""
    return f"{IDS}.{feature}"


def share(feature: str) -> str:
    """Name of a pooled list's shares."""
    return f"share.{feature}"


def weights_of(table: Table) -> str:
    """Name of a table's weights in an `Unsharded` model."""
    return f"tables.{table.path}.weight"


def scale_of(table: Table) -> str:
    """Name of what its numbers of few bits are multiplied by, and of what is added: float32 [rows, 2]."""
    return f"{weights_of(table)}.scale"


class Gathered(nn.Module):
    """Looks up what tables, ids and shares by name say; has no weight of its own."""

    def __init__(
        self, tables: Sequence[Table], features: Sequence[str], lists: Collection[str], scaled: Collection[str] = ()
    ):
        """`features`: as the model's blueprint has them; `lists`: those that have any number of ids a row; `scaled`:
        tables whose weights are numbers of 8 or 4 bits, see `rows_of`."""
        super().__init__()
        self.of_tables = tuple(
            name for t in tables for name in (weights_of(t), *((scale_of(t),) if t.name in scaled else ()))
        )
        """Names of all that is a table's."""
        self.tables, self.features = tuple(tables), tuple(features)
        self.sequences = {f for table in tables for f in table.sequences}
        self.lists = [f for f in features if f in lists or f in self.sequences]
        self.ones = [f for f in features if f not in self.lists]
        self.pooled = {f for table in tables for f in self.lists if f in table.features and f not in table.sequences}
        self.means = {f for table in tables for f in table.means}
        self.weighted = {f for table in tables for f in table.weighted}

    @property
    def names(self) -> tuple[str, ...]:
        """Of what `forward` takes beside the tables."""
        found = [IDS] if self.ones else []
        for feature in self.lists:
            found.append(ids_of(feature))
            found += [mask(feature)] if feature in self.sequences else []
            found += [share(feature)] if feature in self.pooled else []
        return tuple(found)

    def asked(self, ids: Jagged, weights: Tensor | None) -> dict[str, Tensor]:
        """By name what `forward` takes of a batch; `weights`: of the ids, as `Tables.weights`."""
        found = {IDS: self._ones(ids)} if self.ones else {}
        for feature in self.lists:
            found[ids_of(feature)] = padded = ids.padded(feature)
            places = torch.arange(padded.shape[1], device=padded.device)
            real = places < ids.lengths.view(len(ids.keys), -1)[ids.keys.index(feature)][:, None]
            if feature in self.sequences:
                found[mask(feature)] = real
            if feature in self.pooled:
                found[share(feature)] = self._share(feature, ids, real, weights)
        return found

    def _share(self, feature: str, ids: Jagged, real_BT: Tensor, weights: Tensor | None) -> Tensor:
        """float32 [B, T]"""
        if feature in self.weighted and weights is not None:
            at = ids.keys.index(feature)
            start = sum(ids.per_key[:at])
            own = weights[start : start + ids.per_key[at]]
            return weights.new_zeros(real_BT.shape).masked_scatter(real_BT, own)
        parts = real_BT.sum(1, keepdim=True).clamp(min=1) if feature in self.means else 1
        return real_BT / parts

    def _ones(self, ids: Jagged) -> Tensor:
        """[F, B], of which ids that lie side by side are no copy."""
        rows = len(ids.lengths) // len(ids.keys)
        at = [ids.keys.index(f) for f in self.ones]
        assert all(ids.per_key[n] == rows for n in at), "one id a row"
        if at == list(range(at[0], at[0] + len(at))):
            start = sum(ids.per_key[: at[0]])
            return ids.values[start : start + len(at) * rows].view(len(at), rows)
        starts = [sum(ids.per_key[:n]) for n in at]
        return torch.stack([ids.values[start : start + rows] for start in starts])

    def forward(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Tables.forward`: `nn.tables` has the names."""
        vectors, beside, found = list[Tensor](), list[Tensor](), dict[str, Tensor]()
        for feature in self.features:
            for table in self._of(feature):
                if feature in self.lists:
                    x_BTE = rows_of(named, table, named[ids_of(feature)])
                    if feature in table.sequences:
                        found[mask(feature)] = named[mask(feature)]
                        found[sequence(feature)] = x_BTE * named[mask(feature)].unsqueeze(2)
                        continue
                    x_BE = (x_BTE * named[share(feature)].unsqueeze(2)).sum(1)
                else:
                    x_BE = rows_of(named, table, named[IDS][self.ones.index(feature)])
                (beside if table.beside else vectors).append(x_BE)
        if vectors:
            found[VECTORS] = torch.cat(vectors, dim=1)
        if beside:
            found[WEIGHTS] = torch.cat(beside, dim=1)
        return found

    def _of(self, feature: str) -> Iterator[Table]:
        yield from (table for table in self.tables if feature in table.features)


def rows_of(named: Mapping[str, Tensor], table: Table, ids: Tensor) -> Tensor:
    """Vectors of a table, float32 [..., E], of ids [...].

    Of a table with a scale each weight is uint8, of 4 bits two in a byte, the first of them the low one; times the
    row's scale, plus the row's least.
    """
    x = embedding(ids, named[weights_of(table)]).float()
    if scale_of(table) not in named:
        return x
    if 2 * x.shape[-1] == table.dim:
        high = (x / 16).floor()
        x = torch.stack([x - 16 * high, high], dim=-1).flatten(-2)
    scale = embedding(ids, named[scale_of(table)])
    return x * scale[..., :1] + scale[..., 1:]


def quantised(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rows float32 [n, E] as uint8 [n, E], of 4 bits [n, E / 2], and their scale float32 [n, 2]; see `rows_of`.

    Between a row's least and its greatest there are so many steps, and each weight becomes the nearest.
    """
    least, most = rows.aminmax(dim=1, keepdim=True)
    step = (most - least) / (2**bits - 1)
    step = torch.where(step > 0, step, 1.0)
    numbers = ((rows - least) / step).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        numbers = numbers[:, ::2] + 16 * numbers[:, 1::2]
    return numbers, torch.cat([step, least], dim=1)
