"""One request row as a pydantic model, made from the schema that the model was trained with."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from rtrain.data.moments import in_seconds
from rtrain.data.nested import one_list
from rtrain.data.vocabularies import known_of
from rtrain.encodings import LARGEST
from rtrain.errors import DataError
from rtrain.export.flat import Flat, listed
from rtrain.moment import FIRST_SECOND, LAST_SECOND, Age, Moment
from rtrain.schema import Dense, Id, IdList, IdSequence, Schema
from rtrain.text import Text
from rtrain.vector import Embedding


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is no character") from None
    return text


def _number(value: Any) -> Any:
    """Refuses what pydantic would make a whole number of: a word of digits, true and false. 7.0 is one, as in JSON."""
    if isinstance(value, bool | str):
        raise ValueError(f"it must be a whole number, not {_kind(value)}")
    return value


def _numbers(values: Any) -> Any:
    """The same of a list's, all at once."""
    if (
        isinstance(values, list)
        and (at := next((n for n, x in enumerate(values) if isinstance(x, bool | str)), -1)) >= 0
    ):
        raise ValueError(f"at {at}: it must be a whole number, not {_kind(values[at])}")
    return values


def _kind(value: bool | str) -> str:
    return "a word" if isinstance(value, str) else "true or false"


Word = Annotated[str, AfterValidator(_whole)]
"""JSON can spell what is no text."""
Whole = Annotated[int, BeforeValidator(_number)]
Second = Annotated[int, Field(ge=FIRST_SECOND, le=LAST_SECOND), BeforeValidator(_number)]


def asked_of(schema: Schema) -> Schema:
    """The schema of requests: whose data were numbered beforehand, they hold the values."""
    plain = (replace(f, numbered=False) if isinstance(f, Id) and f.numbered else f for f in schema.features)
    return replace(schema, features=tuple(plain))


def row_model(schema: Schema, largest: float = LARGEST) -> type[BaseModel]:
    """The model that validates a row: unknown keys refused, ids within their tables.

    `largest`: of numbers that a model computes with, once they are scaled (`rtrain.export.reach`).
    """
    schema = asked_of(schema)
    plain = Annotated[float, Field(allow_inf_nan=False, ge=-largest, le=largest, strict=True)]
    fields: dict[str, Any] = {}
    for feature in schema.features:
        if isinstance(feature, Moment | Age):
            continue  # made of a column of `schema.stamps`
        doc = f"{type(feature).__name__.lower()} feature of the {feature.entity}"
        if isinstance(feature, Dense):
            low, high = feature.reach(largest)
            bounds = Field(allow_inf_nan=False, strict=True, json_schema_extra={"minimum": low, "maximum": high})
            number = Annotated[float, bounds, AfterValidator(_within(low, high, largest))]
            optional = feature.missing is not None
            fields[feature.name] = (
                (number | None, Field(None, description=doc))
                if optional
                else (
                    number,
                    Field(description=doc),
                )
            )
        elif isinstance(feature, Text):
            fields[feature.name] = (Word | None, Field(None, description=doc))
        elif isinstance(feature, Embedding):
            fields[feature.name] = _vector(feature, plain, doc)
        else:
            fields[feature.name] = _ids(feature, doc)
    for feature in schema.timed:
        doc = f"when each id of {feature.name} was had, seconds since 1970, as many and rising"
        fields[feature.times] = _list(Second, doc)
    for name in schema.id_weights:
        doc = f"the weight of each id of {', '.join(f.name for f in schema.weighted if f.weights == name)}, as many"
        fields[name] = _list(plain, doc)
    fields |= {name: _moment(name, schema) for name in schema.stamps}
    # A name that no feature has: it stands beside theirs.
    checks: dict[str, Any] = {}
    if listed(schema):
        checks["lists of lists"] = model_validator(mode="before")(_flattened(schema))
    if schema.clocks:
        checks["times in order"] = model_validator(mode="after")(_in_time(schema))
    if schema.weighted:
        checks["as many weights"] = model_validator(mode="after")(_weighed(schema))
    config = ConfigDict(extra="forbid", strict=False)
    return create_model("Row", __config__=config, __validators__=checks, **fields)


def _flattened(schema: Schema) -> Callable[[Any], Any]:
    flat = Flat(schema)
    return lambda row: flat(row) if isinstance(row, dict) else row


def _moment(name: str, schema: Schema) -> tuple[Any, Any]:
    """The field of a column of `schema.stamps`; it may be left out where all that is made of it has a stand-in."""
    made = [feature for feature in schema.made if (feature.column or schema.time) == name]
    doc = f"a moment, seconds since 1970; of it: {', '.join(feature.name for feature in made)}"
    if name == schema.time:
        doc = "the row's own moment, seconds since 1970: now, or when it was"
        doc += "; no time of an id is later" if schema.timed else ""
        if schema.timed or any(isinstance(feature, Age) for feature in schema.made):
            return Second, Field(description=doc)
    if all(feature.missing is not None for feature in made):
        return Second | None, Field(None, description=doc)
    return Second, Field(description=doc)


def _in_time(schema: Schema) -> Callable[[Any], Any]:
    """Refuses times that encoding would refuse: there it would take the other requests of the batch along."""
    older = {f.column for f in schema.made if isinstance(f, Age) and f.future == "refuse"}

    def check(row: Any) -> Any:
        moment = getattr(row, schema.time, None)
        for name in older:
            other = getattr(row, name)
            if other is not None and other > moment:
                raise ValueError(f"{name} is {other}, behind the row's own {schema.time}, {moment}")
        for feature in schema.timed:
            ids, times = getattr(row, feature.name), getattr(row, feature.times)
            if len(ids) != len(times):
                raise ValueError(f"{feature.name} has {len(ids)} ids, but {feature.times} has {len(times)} times")
            for before, after in pairwise(times):
                if after < before:
                    raise ValueError(f"{feature.times} fall from {before} to {after}; they must rise, oldest first")
            if times and times[-1] > moment:
                raise ValueError(f"{feature.times} hold {times[-1]}, behind the row's own {schema.time}, {moment}")
        return row

    return check


def _weighed(schema: Schema) -> Callable[[Any], Any]:
    """As `_in_time`, of weights."""

    def check(row: Any) -> Any:
        for feature in schema.weighted:
            ids, weights = len(getattr(row, feature.name)), len(getattr(row, feature.weights))
            if ids != weights:
                raise ValueError(f"{feature.name} has {ids} ids, but {feature.weights} has {weights} weights")
        return row

    return check


def _vector(feature: Embedding, plain: Any, doc: str) -> tuple[Any, Any]:
    vector = Annotated[list[plain], Field(min_length=feature.dim, max_length=feature.dim)]
    return (vector | None, Field(None, description=doc)) if feature.missing else (vector, Field(description=doc))


def _within(low: float, high: float, largest: float) -> Callable[[float], float]:
    """Refuses what encoding would refuse: there it would take the other requests of the batch along.

    Not pydantic's own bounds, which in a JSON Schema beside `null` are spelled otherwise.
    """
    why = "that float32 can hold" if largest == LARGEST else "beyond which the model gives none"

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"it must be a number from {low:g} to {high:g}, {why}")
        return value

    return check


def _ids(feature: Id, doc: str) -> tuple[Any, Any]:
    least, most = (-(2**63), 2**63) if feature.hashed or feature.vocabulary_file else (0, feature.table_rows)
    whole: Any = Annotated[int, Field(ge=least, lt=most)]
    one: Any = Word if feature.of_words else Annotated[whole, BeforeValidator(_number)]
    if feature.vocabulary:
        doc += f"; known: {', '.join(feature.vocabulary)}"
    if feature.vocabulary_file:
        doc += f"; {feature.vocabulary_file.size:,} are known"
    if not isinstance(feature, IdList):
        # A missing word reads the table's row of unknown words; a missing integer has no such row.
        return (one | None, Field(None, description=doc)) if feature.knows_missing else (one, Field(description=doc))
    limit = None if isinstance(feature, IdSequence) else feature.max_length
    return _list(Word if feature.of_words else whole, doc, limit, numbers=not feature.of_words)


def _list(one: Any, doc: str, limit: int | None = None, *, numbers: bool = False) -> tuple[Any, Any]:
    """The field of a list, which null stands for an empty one of, as in data; `numbers`: of whole ones.

    Its JSON Schema tells of lists of lists, which `Flat` makes one before it is checked.
    """
    field: Any = Field(default_factory=list, description=doc, json_schema_extra=_nested)
    kind: Any = Annotated[list[one], Field(max_length=limit)]
    kind = Annotated[kind, BeforeValidator(_numbers)] if numbers else kind
    return Annotated[kind | None, AfterValidator(_or_empty)], field


def _or_empty(values: list[Any] | None) -> list[Any]:
    return [] if values is None else values


def _nested(told: dict[str, Any]) -> None:
    array = told["anyOf"][0]  # beside null
    told["anyOf"].insert(1, {"type": "array", "items": {"type": "array", "items": array["items"]}})


def json_schema(schema: Schema) -> dict[str, Any]:
    """JSON Schema of a row, whatever weights a model has."""
    return row_model(schema).model_json_schema()


def rows_of(table: pa.Table, schema: Schema, asked_by: Schema | None = None) -> list[dict[str, Any]]:
    """Stored rows as requests: what a request has alone, moments in seconds.

    What is null is left out: a request knows no null list, and what is left out means the same. Lists of lists are made
    one, as encoding makes them.

    `asked_by`: of another model than that of the rows, which is asked with them.

    Raises:
        DataError: the rows have no such column, or one of numbers that nothing here has the values of.
    """
    wanted = asked_by or schema
    names = wanted.arrow(label=False).names
    numbered = {of.name: of for of in schema.ids if isinstance(of, Id) and of.numbered}
    strange = {of.name for of in wanted.ids if isinstance(of, Id) and of.numbered}.difference(numbered)
    if lacking := [name for name in names if name not in table.column_names or name in strange]:
        raise DataError(f"these data have no {lacking[0]!r}, which the model is asked with")
    asked = table.select(names)
    for name in numbered.keys() & set(names):
        asked = asked.set_column(asked.column_names.index(name), name, _values(asked, numbered[name]))
    for name in listed(wanted):
        asked = asked.set_column(asked.column_names.index(name), name, one_list(asked.column(name)))
    for name in wanted.clocks:
        asked = asked.set_column(asked.column_names.index(name), name, in_seconds(asked.column(name)))
    return [{k: v for k, v in row.items() if v is not None} for row in asked.to_pylist()]


def _values(table: pa.Table, feature: Id) -> pa.Array:
    """What the ids of a column stand for; of id 0 a null."""
    assert feature.vocabulary_file is not None
    known, ids = known_of(feature.vocabulary_file).values, table[feature.name].combine_chunks()
    return known.take(pc.if_else(pc.greater(ids, 0), pc.subtract(ids, 1), None))
