"""Whether two models fit each other as `TwoStages` says, by what their exports' heads say: before either is loaded."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from rtrain import config
from rtrain.errors import ConfigError, did_you_mean
from rtrain.export.artifact import export_in, is_retrieval, read_head
from rtrain.export.huggingface import is_language
from rtrain.export.request import asked_of, row_model
from rtrain.schema import Id, Schema
from rtrain.stages.config import TwoStages


class Columns:
    """What the ranking model's columns can hold."""

    def __init__(self, fields: Mapping[str, FieldInfo]):
        """`fields`: of the class that validates a row."""
        self._values = {name: _checked(of) for name, of in fields.items()}

    def wrong(self, column: str, value: Any) -> str:
        """Why it is no value of a column; empty: it is one, or the ranking model has no such column."""
        if column in self._values:
            try:
                self._values[column].validate_python(value)
            except ValidationError as error:
                return error.errors()[0]["msg"]
        return ""


def refuse_heads(stages: TwoStages) -> None:
    """Refuse two exports that cannot be the two stages, whatever their weights are.

    Raises:
        UserError: there is no export.
        CheckpointError: it is one of a newer format.
        ConfigError: as `exports_of` and `refuse_misfit`.
    """
    finds, ranks = exports_of(stages)
    data = config.from_dict(read_head(finds, "data", "predict_column")["data"])
    schema: Schema = config.from_dict(read_head(ranks, "schema", "Encoders")["schema"])
    refuse_misfit(stages, asked_of(schema), Columns(row_model(schema).model_fields), data.longest is not None)


def exports_of(stages: TwoStages) -> tuple[str, str]:
    """Of who finds, and of who ranks.

    Raises:
        UserError: there is none.
        ConfigError: one is of a model of another kind.
    """
    finds, ranks = export_in(stages.retriever), export_in(stages.ranker)
    if not is_retrieval(finds):
        raise ConfigError(f"TwoStages.retriever: {finds} is of no model that finds items. Give the run of one")
    if is_retrieval(ranks) or is_language(ranks):
        raise ConfigError(f"TwoStages.ranker: {ranks} is of no model that ranks rows. Give the run of one")
    return finds, ranks


def refuse_misfit(stages: TwoStages, asked: Schema, columns: Columns, of_histories: bool) -> None:
    """`asked`: what rows of the ranking model hold; `of_histories`: whether the retrieval model knows who asks by them.

    Raises:
        ConfigError: a feature or label that the ranking model does not have, or a default that is no value of its.
    """
    names = asked.arrow(label=False).names
    if stages.label:
        _among(stages.label, [label.name for label in asked.labels], "label")
    for of in ("item",) if of_histories else ("item", "user"):
        named = _among(getattr(stages, of), names, of)
        if not any(f.name == named and isinstance(f, Id) for f in asked.ids):
            raise ConfigError(f"TwoStages.{of}: {named!r} of the ranking model is no Id. Name the one that {of}s have")
    if stages.history:
        _among(stages.history, names, "history")
        if not of_histories:
            raise ConfigError("TwoStages.history: the retrieval model knows users by name. Leave it out")
    for name, value in stages.defaults.items():
        if _among(name, names, "defaults") in (stages.user, stages.item):
            raise ConfigError(f"TwoStages.defaults: {name!r} is who asks, or what is offered. Leave it out")
        if why := columns.wrong(name, value):
            raise ConfigError(f"TwoStages.defaults: {name!r} cannot be {value!r} ({why})")


def _among(name: str, names: Sequence[str], field: str) -> str:
    if name not in names:
        near = did_you_mean(name, names) or f". It has {', '.join(names)}"
        raise ConfigError(f"TwoStages.{field}: the ranking model has no {name!r}{near}")
    return name


def _checked(field: FieldInfo) -> TypeAdapter[Any]:
    """Checks a value alone as the whole row is checked."""
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(kind)
