"""One request row as a pydantic model, made from the schema that the model was trained with."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from rtrain.encodings import LARGEST
from rtrain.schema import Dense, Id, IdList, IdSequence, Schema


def row_model(schema: Schema) -> type[BaseModel]:
    """The model that validates a row: unknown keys refused, ids within their tables."""
    fields: dict[str, Any] = {}
    for feature in schema.features:
        doc = f"{type(feature).__name__.lower()} feature of the {feature.entity}"
        if isinstance(feature, Dense):
            ends = feature.reach()
            bounds = Field(allow_inf_nan=False, json_schema_extra={"minimum": ends[0], "maximum": ends[1]})
            number = Annotated[float, bounds, AfterValidator(_fits(feature))]
            optional = feature.missing is not None
            fields[feature.name] = (
                (number | None, Field(None, description=doc))
                if optional
                else (
                    number,
                    Field(description=doc),
                )
            )
        else:
            fields[feature.name] = _ids(feature, doc)
    return create_model("Row", __config__=ConfigDict(extra="forbid", strict=False), **fields)


def _fits(feature: Dense) -> Callable[[float], float]:
    """Refuses what encoding would refuse: there it would take the other requests of the batch along."""

    def check(value: float) -> float:
        if not abs(feature.scaled(np.array([value]))[0]) <= LARGEST:
            raise ValueError("it must be a number that float32 can hold")
        return value

    return check


def _ids(feature: Id, doc: str) -> tuple[Any, Any]:
    one: Any = str if feature.vocabulary else Annotated[int, Field(ge=0, lt=feature.table_rows)]
    if feature.vocabulary:
        doc += f"; known: {', '.join(feature.vocabulary)}"
    if not isinstance(feature, IdList):
        # A missing word reads the table's row of unknown words; a missing integer has no such row.
        return (one | None, Field(None, description=doc)) if feature.vocabulary else (one, Field(description=doc))
    limit = None if isinstance(feature, IdSequence) else feature.max_length
    return list[one], Field(default_factory=list, max_length=limit, description=doc)


def json_schema(schema: Schema) -> dict[str, Any]:
    """JSON Schema of a row."""
    return row_model(schema).model_json_schema()
