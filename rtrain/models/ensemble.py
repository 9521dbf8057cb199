"""A weighted sum of the logits of several ranking models over the same looked-up vectors.

Members share the embedding tables, which are looked up once, and each has its own dense part. A member is one piece:
a pipeline may part the members, but neither tensor ranks nor stages cut what is inside of one.

Shape legend: B rows, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from math import isfinite

from torch import Tensor, nn

from rtrain.errors import ConfigError
from rtrain.models.plan import Piece, chain, nest
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import Table, TableOptions
from rtrain.objectives.distilled import Distillation
from rtrain.objectives.pointwise import Pointwise
from rtrain.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Ensemble(RankingConfig):
    """Several ranking models trained as one, towards the objective that they have in common."""

    models: tuple[RankingConfig, ...]
    """The members; alike in the dim and options of every table, and in what they are trained towards."""
    weights: tuple[float, ...] = ()
    """Factor on each member's logit; empty: their mean."""
    dim: int = field(init=False)
    """The members'."""
    tables: tuple[TableOptions, ...] = field(init=False)
    """The members'."""
    distillation: Distillation | None = field(init=False)
    """The members'."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("model.models: an ensemble of no model. Give models=(DLRM(...), DCNv2(...))")
        for number, model in enumerate(self.models):
            if getattr(model, "several_labels", None) is None:
                raise ConfigError(
                    f"model.models.{number}: an ensemble is of ranking models, which read rows (Interactions), got "
                    f"{type(model).__name__}"
                )
            if isinstance(model, Ensemble):
                raise ConfigError(
                    f"model.models.{number}: a member is an Ensemble itself. Put its models here, each with the "
                    "product of both weights"
                )
        if self.weights and len(self.weights) != len(self.models):
            raise ConfigError(
                f"model.weights: {len(self.weights)} weights for {len(self.models)} models. Give one for each, or "
                "none for their mean"
            )
        if not all(map(isfinite, self.weights)):
            raise ConfigError(f"model.weights: all must be finite numbers, got {self.weights}")
        first = self.models[0]
        for number, model in enumerate(self.models):
            if model.several_labels != first.several_labels:
                raise ConfigError(
                    f"model.models.{number}: {_of(first)} predicts {_labels(first)}, {_of(model)} {_labels(model)}. "
                    "Give members that predict the same"
                )
        for name in ("dim", "tables", "distillation"):
            object.__setattr__(self, name, getattr(first, name))
        super().__post_init__()

    @property
    def several_labels(self) -> bool:  # type: ignore[override]
        """As the members."""
        return self.models[0].several_labels

    def feature_names(self, schema: Schema) -> tuple[str, ...]:
        """The members'."""
        return self.models[0].feature_names(schema)

    def sequence_features(self, schema: Schema) -> tuple[str, ...]:
        """The members'."""
        return self.models[0].sequence_features(schema)

    def table_list(self, schema: Schema) -> tuple[Table, ...]:
        """The members'."""
        return self.models[0].table_list(schema)

    def objective(self, schema: Schema) -> Pointwise:
        """The members'."""
        return self.models[0].objective(schema)

    def check_schema(self, schema: Schema) -> None:
        """As `RankingConfig`.

        Raises:
            ConfigError: also of members that disagree on the tables or their features, or on the objective.
        """
        super().check_schema(schema)
        first = self.models[0]
        tables, features = first.table_list(schema), first.feature_names(schema)
        for number, model in enumerate(self.models):
            where, both = f"model.models.{number}", f"{_of(first)} and {_of(model)}"
            others = model.table_list(schema)
            if len(others) != len(tables):
                raise ConfigError(f"{where}: {both} have other tables. Give first_order to all, or to none")
            for one, other in zip(tables, others, strict=True):
                for name in (f.name for f in fields(Table)):
                    a, b = getattr(one, name), getattr(other, name)
                    if a != b:
                        raise ConfigError(
                            f"{where}: members share the tables, but {name} of table {one.name!r} is {a} in "
                            f"{_of(first)} and {b} in {_of(model)}. Give both the same"
                        )
            if model.feature_names(schema) != features:
                raise ConfigError(f"{where}: {both} read other features, or in another order. Give members that agree")
            if model.objective(schema) != first.objective(schema):
                raise ConfigError(f"{where}: {both} are trained towards other objectives. Give both the same")

    def pieces(self, schema: Schema) -> tuple[Piece, ...]:
        """One a member, in their order; each adds its share to the sum of those before."""
        weights = self.weights or (1 / len(self.models),) * len(self.models)
        found = []
        for number, (model, weight) in enumerate(zip(self.models, weights, strict=True)):
            inside = model.pieces(schema)
            takes = tuple(dict.fromkeys(name for piece in inside for name in piece.takes))
            build = partial(Member, inside, takes, weight=weight, first=number == 0)
            found.append(Piece(name=f"members.{number}", build=build, cost=1.0, takes=takes))
        return tuple(found)


class Member(nn.Module):
    """(the sum of the members before, but for the first; what its pieces take) -> the sum with its own, [B] or [B, L].

    Its parameters have the names of the model alone, so that its weights can be moved into it and out.
    """

    def __init__(self, pieces: Sequence[Piece], takes: Sequence[str], *, weight: float, first: bool):
        super().__init__()
        self.weight, self.first = weight, first
        self._names = tuple(takes)
        self._pieces = [piece.build() for piece in pieces]
        self._takes = [piece.takes for piece in pieces]
        for piece, module in zip(pieces, self._pieces, strict=True):
            nest(self, piece.name, module)

    def forward(self, *given: Tensor) -> Tensor:
        """float32 [B], or [B, L] of several labels."""
        named = dict(zip(self._names, given[0 if self.first else 1 :], strict=True))
        logits: Tensor = self.weight * chain(self._pieces, self._takes, (), named)
        return logits if self.first else given[0] + logits


def _of(model: RankingConfig) -> str:
    return type(model).__name__


def _labels(model: RankingConfig) -> str:
    return "several labels" if model.several_labels else "one label"
