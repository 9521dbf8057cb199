"""What a model reads of rows at once: numbers, jagged ids, and what they are trained towards.

Shape legend: B rows of a batch, D dense features, F id features (in `schema.ids` order), L labels, T longest sequence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.errors import DataError

NONE: Mapping[str, int] = MappingProxyType({})


def times(feature: str) -> str:
    """Name of the input that says how long before its row's own moment each id of a sequence was had."""
    return f"times.{feature}"


@dataclass
class Jagged:
    """Ids of several features, feature-major: the layout of torchrec's KeyedJaggedTensor.

    `lengths[f * B + b]` values belong to feature f of row b; `values` holds them in that order. What is counted of them
    is counted once, on the host, where they are made: of what lies on a device it would be waited for in every step.
    """

    keys: tuple[str, ...]
    values: Tensor
    """int64 [sum of lengths]"""
    lengths: Tensor
    """int32 [F * B]"""
    weights: Tensor | None = None
    """float32 [sum of lengths]: of each id, 1 in a feature that has none; none where no feature has"""
    host: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """int32 [F * B]: `lengths` once more, on the host; left out: read from there"""
    per_key: tuple[int, ...] = ()
    """Ids of each feature over all rows; left out: counted"""

    def __post_init__(self) -> None:
        if len(self.host) != len(self.lengths):
            self.host = self.lengths.cpu().numpy()
        if not self.per_key:
            self.per_key = tuple(self._host_FB().sum(axis=1, dtype=np.int64).tolist())
        given = len(self.values)
        assert sum(self.per_key) == given, f"the lengths of ids add up to {sum(self.per_key)}, but there are {given}"

    def _host_FB(self) -> NDArray[np.int32]:
        return self.host.reshape(len(self.keys), len(self.host) // max(1, len(self.keys)))

    def rows(self, start: int, stop: int) -> "Jagged":
        """The ids of rows start..stop-1."""
        host_FB = self._host_FB()
        begins = np.concatenate([[0], np.cumsum(self.host, dtype=np.int64)])
        firsts = np.arange(len(self.keys)) * host_FB.shape[1]
        cuts = [
            slice(*cut) for cut in zip(begins[firsts + start].tolist(), begins[firsts + stop].tolist(), strict=True)
        ]
        return Jagged(
            self.keys,
            torch.cat([self.values[cut] for cut in cuts]),
            self.lengths.view(host_FB.shape)[:, start:stop].flatten(),
            None if self.weights is None else torch.cat([self.weights[cut] for cut in cuts]),
            host_FB[:, start:stop].flatten(),
        )

    def extended(self, extra: int) -> "Jagged":
        """The same with so many rows without ids at its end."""
        if not extra:
            return self
        host_FB = self._host_FB()
        lengths = pad(self.lengths.view(host_FB.shape), (0, extra)).flatten()
        return replace(self, lengths=lengths, host=np.pad(host_FB, ((0, 0), (0, extra))).ravel())

    def padded(self, key: str) -> Tensor:
        """One feature's ids, int64 [B, T], 0 behind each row's end; T is that of the longest row, at least 1."""
        at = self.keys.index(key)
        start, stop = (sum(self.per_key[:f]) for f in (at, at + 1))
        lengths_B = self.lengths.view(self._host_FB().shape)[at]
        real_BT = torch.arange(self.longest[key], device=self.values.device) < lengths_B.unsqueeze(1)
        return self.values.new_zeros(real_BT.shape).masked_scatter(real_BT, self.values[start:stop])

    @property
    def longest(self) -> dict[str, int]:
        """Feature -> ids of the row that has most of it, at least 1."""
        return dict(zip(self.keys, self._host_FB().max(axis=1, initial=1).tolist(), strict=True))


Of = TypeVar("Of")


def each(of: Of, by: Callable[[Tensor], Tensor]) -> Of:
    """A batch, or its `Jagged`, with `by` of each of its tensors; what the host alone reads is none, and stays."""
    made = {f.name: _each(getattr(of, f.name), by) for f in fields(of)}  # type: ignore[arg-type]
    return replace(of, **made)  # type: ignore[type-var]


def _each(value: Any, by: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return by(value)
    if isinstance(value, Jagged):
        return each(value, by)
    return {name: by(x) for name, x in value.items()} if isinstance(value, Mapping) else value


def copied(of: Of, device: torch.device) -> Of:
    """As `each`, on another device."""
    return each(of, lambda x: x.to(device, non_blocking=True))


@dataclass
class Batch:
    """One rank's share of a global batch."""

    made_by: ClassVar[str] = "Interactions"

    dense: Tensor
    """float32 [B, sum of `Schema.dense_widths`], normalised or encoded"""
    ids: Jagged
    label: Tensor
    """float32 [B], or [B, L] of a schema of several labels; nan where a row does not have it, as none does that pads"""
    group: Tensor
    """int64 [B]: whom the rows are ranked for; zeros without `schema.group`.

    The id of the group feature; of a word that its vocabulary lacks, a negative hash, so that unknown users are not
    ranked as one. Only a missing word is 0.
    """
    row: Tensor
    """int64 [B]: the sample's number in its data set, the identity that resume is proved with; -1 pads"""
    global_rows: int
    """Rows of the global batch, over all data ranks."""
    weight: Tensor | None = None
    """float32 [B]: factor on each row's loss, 0 of one that pads; none without `schema.weight`"""
    teacher: Tensor | None = None
    """float32 [B]: a teacher's logit, nan where a row has none; none without `schema.teacher`"""
    times: Mapping[str, Tensor] = field(default_factory=dict)
    """Each of `schema.timed` -> int64 [B, T], T that of `ids.padded`: seconds between an id and the row's own moment, 0
    behind each row's end"""

    @property
    def rows(self) -> int:
        """B, padding included."""
        return int(self.label.shape[0])

    def loss_units(self, summed: Callable[[float], float]) -> float:
        """As `data.protocol.AnyBatch`: its rows, or the sum of their weights.

        Raises:
            DataError: weights that are all 0; on every rank alike.
        """
        if self.weight is None:
            return self.global_rows
        weight = summed(float(self.weight.sum(dtype=torch.float64)))
        if not weight > 0:
            raise DataError(
                f"row {int(self.row[0])} of the data: its weight (schema.weight) is 0, and so is that of all "
                f"{self.global_rows} rows of its global batch, which has no loss then. Raise global_batch, or drop them"
            )
        return weight

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a piece may take besides the vectors of the ids: numbers, and of sequences their `times`."""
        return {"dense": self.dense} | {times(name): ago for name, ago in self.times.items()}

    @property
    def target(self) -> Tensor:
        """What its outputs are held against: the label; with a teacher's logit and a weight behind it [B, L + 1 or 2].

        One tensor, which microbatches and pipelines cut by rows.
        """
        beside = [column for column in (self.teacher, self.weight) if column is not None]
        return torch.column_stack([self.label, *beside]) if beside else self.label

    def padded(self, rows: int, longest: Mapping[str, int] = NONE) -> "Batch":
        """The batch with rows without ids and labels, and with row -1, added at its end, up to `rows`.

        Row-wise sharded tables need the same B on every rank; padding gives it at any world size.
        The padding touches no table row, and has no label that it would be held against. Times become as long as the
        `longest` that the tables are told of their sequence.
        """
        extra = rows - self.rows
        later = {name: longest.get(name, ago.shape[1]) - ago.shape[1] for name, ago in self.times.items()}
        if extra == 0 and not any(later.values()):
            return self
        return Batch(
            dense=pad(self.dense, (0, 0, 0, extra)),
            ids=self.ids.extended(extra),
            label=pad(self.label, (*(0, 0) * (self.label.dim() - 1), 0, extra), value=float("nan")),
            group=pad(self.group, (0, extra)),
            row=pad(self.row, (0, extra), value=-1),
            global_rows=self.global_rows,
            weight=None if self.weight is None else pad(self.weight, (0, extra)),
            teacher=None if self.teacher is None else pad(self.teacher, (0, extra), value=float("nan")),
            times={name: pad(ago, (0, later[name], 0, extra)) for name, ago in self.times.items()},
        )

    def to(self, device: torch.device) -> "Batch":
        """A copy on another device; the same object when it is there already."""
        return self if self.dense.device == device else copied(self, device)
