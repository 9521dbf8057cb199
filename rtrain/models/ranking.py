"""What every ranking model gives the rest of rtrain: a config with tables and `build()`, and a module in two parts.

The two parts are what makes layouts compose: `tables` (ids -> vectors) is sharded by TorchRec,
`tower` (tensors -> logits) is replicated or partitioned by DDP or ZeRO.

Shape legend: B rows, D dense features, V dims of all features' vectors together, T longest sequence, E embedding dim.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from rtrain.batch import Batch
from rtrain.errors import ConfigError, did_you_mean
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint, Model
from rtrain.models.unsharded import Unsharded
from rtrain.nn.tables import VECTORS, WEIGHTS, Table, TableOptions, mask, sequence
from rtrain.objectives.distilled import Distillation, Distilled
from rtrain.objectives.pointwise import Pointwise, pointwise
from rtrain.schema import ANY_LENGTH, Id, Many, Schema


@dataclass(frozen=True, kw_only=True)
class RankingConfig(Model):
    """Config of a model that scores rows."""

    reads: ClassVar[Any] = Batch
    served: ClassVar[bool] = True
    exported: ClassVar[str] = "rtrain"
    several_labels: ClassVar[bool] = False
    """Whether the model gives a logit for each label of the schema, or just one."""

    dim: int = 16
    """Embedding dim of every table that `tables` gives no other."""
    tables: tuple[TableOptions, ...] = ()
    """Tables with a dim, a pooling or first weights of their own."""
    distillation: Distillation | None = None
    """How it learns from a teacher's logits, the column `schema.teacher`; none: from labels alone."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.dim % 4:
            raise ConfigError(f"model.dim: must be a multiple of 4, which fbgemm reads at once, got {self.dim}")
        named = [options.table for options in self.tables]
        for name in named:
            if named.count(name) > 1:
                raise ConfigError(f"model.tables: table {name!r} is there twice")

    def feature_names(self, schema: Schema) -> tuple[str, ...]:
        """The id features in the order of the tower's input."""
        return tuple(f.name for f in schema.ids)

    def sequence_features(self, schema: Schema) -> tuple[str, ...]:
        """The features that the tower reads as sequences; all others become one vector a row."""
        return ()

    def table_list(self, schema: Schema) -> tuple[Table, ...]:
        """The embedding tables that the schema asks for.

        Raises:
            ConfigError: options for a table that the schema does not have.
        """
        sequences = self.sequence_features(schema)
        options = {o.table: o for o in self.tables}
        for name in options:
            if name not in schema.tables:
                near = did_you_mean(name, schema.tables)
                raise ConfigError(
                    f"model.tables: the schema has no table {name!r}{near or '. It has ' + ', '.join(schema.tables)}"
                )
        lists, weighted = {f.name for f in schema.ids if isinstance(f, Many)}, {f.name for f in schema.weighted}
        lengths, found = {f.name: _mean_length(f) for f in schema.ids if isinstance(f, Many)}, []
        managed = {f.table_name: f.managed if isinstance(f, Id) else None for f in schema.ids}
        for name, rows in schema.tables.items():
            features = tuple(f.name for f in schema.ids if f.table_name == name)
            own = options.get(name, TableOptions(table=name))
            found.append(
                Table(
                    name=name,
                    rows=rows,
                    dim=own.dim or self.dim,
                    features=features,
                    sequences=tuple(f for f in features if f in sequences),
                    means=tuple(f for f in features if f in lists and own.pooling == "mean"),
                    weighted=tuple(f for f in features if f in weighted),
                    mean_lengths=tuple(lengths.get(f, 1.0) for f in features),
                    initial=own.initial,
                    scale=own.scale,
                    vectors=own.vectors,
                    dtype=own.dtype,
                    managed=managed[name],
                )
            )
        return tuple(found)

    def dims(self, schema: Schema) -> dict[str, int]:
        """Id feature -> dim of its vectors, in the order of the tower's input."""
        by_feature = {f: t.dim for t in self.table_list(schema) if not t.beside for f in t.features}
        return {f: by_feature[f] for f in self.feature_names(schema)}

    def width(self, schema: Schema) -> int:
        """V: the dims of all vectors that the tower is given side by side; sequences come apart from them."""
        return sum(dim for f, dim in self.dims(schema).items() if f not in self.sequence_features(schema))

    def one_dim(self, schema: Schema) -> int:
        """The dim of every table, for a model that multiplies vectors of one feature with those of another.

        Raises:
            ConfigError: `tables` gives some table another dim.
        """
        name = type(self).__name__
        for table in self.table_list(schema):
            if table.dim != self.dim and not table.beside:
                raise ConfigError(
                    f"model.tables: table {table.name!r} has dim {table.dim}, but {name} multiplies vectors of "
                    f"different tables, so all need model.dim ({self.dim}). Leave its dim out, or use DCNv2"
                )
        return self.dim

    def objective(self, schema: Schema) -> Pointwise:
        """What the model is trained towards."""
        if self.distillation:
            return Distilled(weighted=bool(schema.weight), by=self.distillation)
        return pointwise(schema)

    def tower(self, schema: Schema) -> nn.Module:
        """The dense part: (dense [B, D], vectors [B, V], and [B, T, E] and [B, T] a sequence) -> logits.

        Raises:
            ConfigError: a schema that the model cannot read.
        """
        self.check_schema(schema)
        return self.dense_part(schema)

    def check_schema(self, schema: Schema) -> None:
        """Look at a schema.

        Raises:
            ConfigError: it is without an id feature, of another number of labels than the model predicts, or has
                weights or a teacher's logits that the objective does not read, or no teacher that it would read.
        """
        name, labels = type(self).__name__, [label.name for label in schema.labels]
        if self.several_labels != (len(labels) > 1):
            has = f"the schema has {len(labels)}: {', '.join(labels)}"
            raise ConfigError(
                f"model {name}: it predicts several labels, but {has}. Add to schema.more_labels, or use DLRM"
                if self.several_labels
                else f"model {name}: it predicts one label, but {has}. Use MMoE or PLE, or drop schema.more_labels"
            )
        if not schema.ids:
            raise ConfigError(f"model {name}: the schema has no id feature to look up. Add one")
        taught = self.objective(schema).taught
        if (taught or self.distillation) and not schema.teacher:
            raise ConfigError(
                f"model {name}: it learns from a teacher's logits, but the schema has none. Name their column in "
                "schema.teacher"
            )
        if schema.teacher and not taught:
            raise ConfigError(
                f"model {name}: its objective does not read a teacher's logits (schema.teacher). Give it "
                "distillation=Distillation(), or leave schema.teacher out"
            )
        if self.objective(schema).weighted != bool(schema.weight):
            raise ConfigError(
                f"model {name}: its objective does not read the weights of rows (schema.weight). Make it with "
                "weighted=bool(schema.weight), or leave schema.weight out"
            )

    def blueprint(self, schema: Schema) -> Blueprint:
        """See `rtrain.models.protocol`."""
        self.check_schema(schema)
        return Blueprint(
            tables=self._weighted(schema),
            features=self.feature_names(schema),
            pieces=self.pieces(schema),
            objective=self.objective(schema),
            longest=self.longest(schema),
        )

    def _weighted(self, schema: Schema) -> tuple[Table, ...]:
        """`table_list`, of which each list that has weights is pooled by them.

        Raises:
            ConfigError: a list that is not.
        """
        tables, name = self.table_list(schema), type(self).__name__
        for feature in schema.weighted:
            what = f"feature {feature.name!r}: its weights {feature.weights!r} are"
            for table in (table for table in tables if feature.name in table.features):
                if table.sequences:
                    raise ConfigError(
                        f"{what} of a pooled list, but {name} reads table {table.name!r} as the sequence "
                        f"{table.sequences[0]!r}. Leave the weights out, or give a list that is pooled its own table"
                    )
                if feature.name not in table.weighted:
                    raise ConfigError(
                        f"{what} not read: table_list of {name} does not name it in Table.weighted. Add it there, or "
                        "leave the weights out"
                    )
        return tables

    def longest(self, schema: Schema) -> dict[str, int]:
        """Of the features read as sequences, the stated `max_length`; without those of any length."""
        read = self.sequence_features(schema)
        lists = [f for f in schema.ids if isinstance(f, Many) and f.name in read]
        return {f.name: f.max_length for f in lists if f.max_length < ANY_LENGTH}

    def pieces(self, schema: Schema) -> tuple[Piece, ...]:
        """The dense part in the order of a pipeline: the tower alone, unless a model can be cut."""
        read = set(self.sequence_features(schema))
        sequences = [f for f in self.feature_names(schema) if f in read]
        beside = [WEIGHTS] if any(table.beside for table in self.table_list(schema)) else []
        takes = ("dense", VECTORS, *(name for f in sequences for name in (sequence(f), mask(f))), *beside)
        return (Piece(name="tower", build=partial(self.tower, schema), cost=0.0, takes=takes),)

    def dense_part(self, schema: Schema) -> nn.Module:
        """What `tower` gives, for a schema that it has checked; of a model that gives no `pieces` of its own."""
        raise ConfigError(
            f"model {type(self).__name__}: it has no dense part. Give it `dense_part(schema)`, a module, or "
            "`pieces(schema)`, as tests/parallel/users_model.py has"
        )

    def build(self, schema: Schema, *, seed: int, table_device: torch.device | str = "cpu") -> Unsharded:
        """The model in one process, see `Unsharded`."""
        return Unsharded(self.blueprint(schema), seed=seed, table_device=table_device)


def _mean_length(of: Many) -> float:
    """Ids of a row on average, as far as a schema knows: what it states, or else the longest list, or else 1."""
    return of.mean_length or (float(of.max_length) if of.max_length < ANY_LENGTH else 1.0)


def check_sizes(**sizes: tuple[int, ...]) -> None:
    """Refuse hidden sizes below 1; the keyword is the field's name.

    Raises:
        ConfigError: the first field with such a size.
    """
    for name, values in sizes.items():
        if min(values, default=1) < 1:
            raise ConfigError(f"model.{name}: a hidden size is at least 1, got {values}")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout outside [0, 1).

    Raises:
        ConfigError: it is.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout: must be in [0, 1), got {dropout}")
