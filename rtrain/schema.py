"""Typed features and the batches made of them.

One `Schema` validates the training data, sizes the embedding tables and becomes the request of
the served endpoint, so that training and serving cannot drift apart.

Shape legend: B rows of a batch, D dense features, F id features (in `schema.ids` order), L labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.encodings import LARGEST, Encoding
from rtrain.errors import ConfigError, DataError

Entity = Literal["user", "item", "context"]
NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Dense:
    """One number a row, fed to the model as `(value - mean) / std`, or as its encoding."""

    name: str
    """Column in the data and key in a request."""
    entity: Entity = "context"
    """Whom the feature describes."""
    mean: float = 0.0
    """Subtracted from the raw value."""
    std: float = 1.0
    """Divides the raw value; must be positive."""
    missing: float | None = None
    """Raw value that stands for a null; none refuses nulls."""
    encoding: Encoding | None = None
    """`PiecewiseLinear` or `Quantiles` of the raw value, in place of mean and std."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"feature {self.name!r}: std must be positive, got {self.std}")
        if self.encoding and (self.mean, self.std) != (0, 1):
            raise ConfigError(f"feature {self.name!r}: mean and std are not read beside an encoding. Leave them out")

    @property
    def width(self) -> int:
        """Columns of the model's input that it becomes."""
        return self.encoding.width if self.encoding else 1

    def scaled(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw values [N] -> the one number of each that a row keeps; `encodings.widened` makes the columns of it."""
        return self.encoding.scaled(raw) if self.encoding else (raw - self.mean) / self.std

    def reach(self) -> tuple[float, float]:
        """The smallest and largest raw value that float32 can hold the scaled number of."""
        if self.encoding:
            return self.encoding.reach()
        return self.mean - LARGEST * self.std, self.mean + LARGEST * self.std

    def arrow_type(self) -> pa.DataType:
        """float64: wide enough for every number a column may hold."""
        return pa.float64()


@dataclass(frozen=True, kw_only=True)
class Id:
    """One categorical value a row, looked up in an embedding table.

    Give `rows` for integers 0..rows-1, or `vocabulary` for strings: the word at index i gets id
    i + 1, and id 0 stands for a missing or unknown word.
    """

    name: str
    """Column in the data and key in a request."""
    entity: Entity = "context"
    """Whom the feature describes."""
    rows: int = 0
    """Rows of its table; ids are 0..rows-1. 0: take it from the vocabulary."""
    vocabulary: tuple[str, ...] = ()
    """The known words, for a column of strings."""
    table: str = ""
    """Table to look up in; features that name the same table share it. Empty: its own name."""

    def __post_init__(self) -> None:
        if bool(self.rows) == bool(self.vocabulary):
            raise ConfigError(f"feature {self.name!r}: give either rows (for integers) or vocabulary (for strings)")
        if self.rows < 0:
            raise ConfigError(f"feature {self.name!r}: rows must be positive, got {self.rows}")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ConfigError(f"feature {self.name!r}: its vocabulary has a word twice")

    @property
    def table_name(self) -> str:
        """The table that the feature reads."""
        return self.table or self.name

    @property
    def table_rows(self) -> int:
        """Rows of the table, the row of unknown words included."""
        return self.rows or len(self.vocabulary) + 1

    def arrow_type(self) -> pa.DataType:
        """string with a vocabulary, int64 without."""
        return pa.string() if self.vocabulary else pa.int64()


ANY_LENGTH = 1_000_000
"""Ids of a list whose schema states no `max_length`."""


@dataclass(frozen=True, kw_only=True)
class IdList(Id):
    """Any number of categorical values a row (jagged), pooled by the model."""

    max_length: int = ANY_LENGTH
    """Longest list that is accepted. A model that reads it as a sequence under tensor or pipeline ranks pads to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 1:
            raise ConfigError(f"feature {self.name!r}: max_length must be at least 1, got {self.max_length}")

    def arrow_type(self) -> pa.DataType:
        """A list of what `Id` takes."""
        return pa.list_(super().arrow_type())


@dataclass(frozen=True, kw_only=True)
class IdSequence(IdList):
    """An `IdList` in time order, oldest first; beyond `max_length` the newest are kept."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is predicted: 0 or 1, or a number."""

    name: str = "label"
    """Column in the data; never part of a request."""
    kind: Literal["binary", "number"] = "binary"
    """binary: 0 or 1, trained by cross-entropy, predicted as a probability; number: any finite one (a rating, a price),
    trained by squared error, predicted as it is. All labels of a schema are of one kind."""
    optional: bool = False
    """Whether a row may be without it (null): its loss and metrics then leave that row out."""


Sequence = IdSequence  # what configs of earlier runs and exports name it

Feature = Dense | Id | IdList | IdSequence


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All features of a model, its label, and the column that metrics group by."""

    features: tuple[Feature, ...]
    """Everything that the model reads."""
    label: Label = Label()
    """What the model predicts."""
    more_labels: tuple[Label, ...] = ()
    """What a model of several tasks predicts besides; their metrics are named `<label>_<metric>`."""
    group: str = ""
    """Id feature whose rows are ranked together (usually the user); empty: no ranking metrics."""
    time: str = ""
    """Column of seconds since 1970 that orders the rows; empty: nothing does, and `data.split=Random()` parts them."""
    weight: str = ""
    """Column of numbers of at least 0 that scale the rows' losses; empty: every row counts as 1.

    A step's loss is the sum of weight times loss over the sum of the weights of its global batch. Metrics do not read
    it: in them every row of a split counts as 1, so that they stay comparable with other weights and with none.
    """
    teacher: str = ""
    """Column of a teacher's logits, null where a row has none, which a model with `distillation` learns from; empty: no
    teacher. Never part of a request."""

    def __post_init__(self) -> None:
        beside = [name for name in (self.weight, self.teacher) if name]
        names = [f.name for f in self.features] + [label.name for label in self.labels] + beside
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"schema: the name {name!r} is used twice")
        kinds = [f"{label.name!r} is {label.kind}" for label in self.labels]
        if len({label.kind for label in self.labels}) > 1:
            raise ConfigError(f"schema: all labels are of one kind, but {', '.join(kinds)}. Give each kind its own run")
        if self.teacher and (self.more_labels or self.predicts_numbers):
            raise ConfigError("schema.teacher: its logits are of one label of 0 or 1. Give it a schema with that alone")
        if self.group and self.group not in [f.name for f in self.ids if not isinstance(f, IdList)]:
            raise ConfigError(f"schema.group: {self.group!r} is not an Id feature of this schema")
        for table, rows in ((f.table_name, f.table_rows) for f in self.ids):
            if rows != self.tables[table]:
                raise ConfigError(
                    f"schema: features of table {table!r} disagree on its rows: {self.tables[table]}, {rows}"
                )

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The numbers, in the order of `Batch.dense`'s columns; an encoded one has several."""
        return tuple(f for f in self.features if isinstance(f, Dense))

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Columns of `Batch.dense` of each number; their sum is what a model is built for."""
        return tuple(f.width for f in self.dense)

    @property
    def ids(self) -> tuple[Id, ...]:
        """The categorical features (single, list and sequence), in the order of `Batch.ids`."""
        return tuple(f for f in self.features if isinstance(f, Id))

    @property
    def labels(self) -> tuple[Label, ...]:
        """All that is predicted, in the order of the model's outputs."""
        return (self.label, *self.more_labels)

    @property
    def predicts_numbers(self) -> bool:
        """Whether the labels are numbers, not 0 or 1."""
        return self.label.kind == "number"

    @property
    def metric_prefixes(self) -> tuple[str, ...]:
        """What stands before the names of each label's metrics: nothing for the first, `<label>_` for a further one."""
        return "", *(f"{label.name}_" for label in self.more_labels)

    @property
    def tables(self) -> dict[str, int]:
        """Table name -> rows, in order of first use."""
        first: dict[str, int] = {}
        for feature in self.ids:
            first.setdefault(feature.table_name, feature.table_rows)
        return first

    def arrow(self, *, label: bool) -> pa.Schema:
        """The columns that rows must have: all of training data, or of a request (`label=False`)."""
        columns = [pa.field(f.name, f.arrow_type()) for f in self.features]
        if label:
            columns += [pa.field(one.name, pa.float64()) for one in self.labels]
            columns += [pa.field(name, pa.float64()) for name in (self.weight, self.teacher) if name]
        return pa.schema(columns)


@dataclass
class Jagged:
    """Ids of several features, feature-major: the layout of torchrec's KeyedJaggedTensor.

    `lengths[f * B + b]` values belong to feature f of row b; `values` holds them in that order.
    """

    keys: tuple[str, ...]
    values: Tensor
    """int64 [sum of lengths]"""
    lengths: Tensor
    """int32 [F * B]"""

    def rows(self, start: int, stop: int) -> "Jagged":
        """The ids of rows start..stop-1."""
        lengths_FB = self.lengths.view(len(self.keys), -1)
        kept = torch.zeros_like(lengths_FB, dtype=torch.bool)
        kept[:, start:stop] = True
        values = self.values[kept.flatten().repeat_interleave(self.lengths, output_size=len(self.values))]
        return Jagged(self.keys, values, lengths_FB[:, start:stop].flatten())

    def padded(self, key: str) -> Tensor:
        """One feature's ids, int64 [B, T], 0 behind each row's end; T is that of the longest row, at least 1."""
        lengths_FB = self.lengths.view(len(self.keys), -1).long()
        at = self.keys.index(key)
        start, stop = (int(lengths_FB[:f].sum()) for f in (at, at + 1))
        real_BT = torch.arange(self.longest[key], device=self.values.device) < lengths_FB[at].unsqueeze(1)
        return self.values.new_zeros(real_BT.shape).masked_scatter(real_BT, self.values[start:stop])

    @property
    def longest(self) -> dict[str, int]:
        """Feature -> ids of the row that has most of it, at least 1."""
        lengths = self.lengths.view(len(self.keys), -1)
        most = lengths.amax(dim=1).clamp(min=1) if lengths.shape[1] else lengths.new_ones(len(self.keys))
        return dict(zip(self.keys, most.tolist(), strict=True))

    def to(self, device: torch.device) -> "Jagged":
        """A copy on another device."""
        return Jagged(self.keys, self.values.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True))


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
        """What a piece may take besides the vectors of the ids."""
        return {"dense": self.dense}

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
        The padding touches no table row, and has no label that it would be held against. Nothing here is as long as a
        sequence, whose `longest` the tables are told.
        """
        extra = rows - self.rows
        if extra == 0:
            return self
        lengths = self.ids.lengths.view(len(self.ids.keys), self.rows)
        return Batch(
            dense=pad(self.dense, (0, 0, 0, extra)),
            ids=Jagged(self.ids.keys, self.ids.values, pad(lengths, (0, extra)).flatten()),
            label=pad(self.label, (*(0, 0) * (self.label.dim() - 1), 0, extra), value=float("nan")),
            group=pad(self.group, (0, extra)),
            row=pad(self.row, (0, extra), value=-1),
            global_rows=self.global_rows,
            weight=None if self.weight is None else pad(self.weight, (0, extra)),
            teacher=None if self.teacher is None else pad(self.teacher, (0, extra), value=float("nan")),
        )

    def to(self, device: torch.device) -> "Batch":
        """A copy on another device; the same object when it is there already."""
        if self.dense.device == device:
            return self
        return Batch(
            dense=self.dense.to(device, non_blocking=True),
            ids=self.ids.to(device),
            label=self.label.to(device, non_blocking=True),
            group=self.group.to(device, non_blocking=True),
            row=self.row.to(device, non_blocking=True),
            global_rows=self.global_rows,
            weight=None if self.weight is None else self.weight.to(device, non_blocking=True),
            teacher=None if self.teacher is None else self.teacher.to(device, non_blocking=True),
        )
