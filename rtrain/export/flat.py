"""Requests as a table, their lists of lists, such as sessions of items, read as the trainer reads them."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from rtrain.schema import IdList, IdSequence, Schema

LISTS = (list, tuple, np.ndarray)
WHOLE = {int, type(None)}


def listed(schema: Schema) -> tuple[str, ...]:
    """The columns that hold a list a row, but for vectors: ids, their times and their weights."""
    ids = (f.name for f in schema.ids if isinstance(f, IdList))
    return (*ids, *dict.fromkeys(f.times for f in schema.timed), *schema.id_weights)


class Flat:
    """A request with every list of lists as one list, all inner ones one behind the other; a null inner one is empty.

    What is no such list, or a mixture, stays as it is.
    """

    def __init__(self, schema: Schema):
        self._listed = listed(schema)
        ids = [f for f in schema.ids if isinstance(f, IdList)]
        times = {f.name: f.times for f in ids if isinstance(f, IdSequence)}
        beside = ((f.name, name) for f in ids for name in (times.get(f.name), f.weights))
        self._beside = [(name, other) for name, other in beside if other]
        """Columns of ids, and of what lies beside them."""

    def __call__(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row itself where none of its lists holds lists.

        Raises:
            ValueError: times or weights that lie in other inner lists than their ids.
        """
        nested = [name for name in self._listed if _is_nested(row.get(name))]
        if not nested:
            return row
        for name, beside in self._beside:
            if not _alike(row.get(name), row.get(beside)):
                raise ValueError(f"{beside} nests otherwise than {name}. Let both nest alike")
        return {**row, **{name: _flat(row[name]) for name in nested}}


class Requests:
    """Rows of requests as tables of the columns that are wanted."""

    def __init__(self, wanted: pa.Schema):
        self.wanted = wanted
        self._row = pa.struct(list(wanted))
        nested = {f.name: pa.types.is_list(f.type) or pa.types.is_large_list(f.type) for f in wanted}
        self._nested = {f.name: nested[f.name] for f in wanted if _is_whole(f.type, nested[f.name])}
        """Of the columns of whole numbers, whether they hold lists."""

    def table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Of each row what is wanted; null where it has no such key.

        Raises:
            ValueError: a value that its column cannot hold; names the column.
        """
        try:  # all at once, for a call a column takes longer than one row's value
            whole = pa.RecordBatch.from_struct_array(
                pa.array([row if type(row) is dict else dict(row) for row in rows], self._row)
            )
            table = pa.Table.from_batches([whole], self.wanted)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError):
            table = pa.table([_column(rows, field) for field in self.wanted], schema=self.wanted)
        for name, nested in self._nested.items():
            values = [row.get(name) for row in rows]
            _refuse_fractions(name, list(chain.from_iterable(v for v in values if v is not None)) if nested else values)
        return table


def _is_whole(kind: pa.DataType, nested: bool) -> bool:
    return bool(pa.types.is_integer(kind.value_type if nested else kind))


def _column(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{field.name}: {error}") from error


def _refuse_fractions(name: str, values: Sequence[Any]) -> None:
    """pyarrow would cut them off."""
    if set(map(type, values)) <= WHOLE:  # a look at each costs six times as much
        return
    for value in values:
        if isinstance(value, float | np.floating) and not value.is_integer():
            raise ValueError(f"{name}: {value} is no whole number")


def _flat(value: Any) -> Any:
    while _is_nested(value):
        value = _opened(value)
    return value


def _alike(one: Any, other: Any) -> bool:
    """Whether inner lists are as long; of what has none, or nothing at all, other checks tell."""
    while _is_nested(one) or _is_nested(other):
        if not (_is_nested(one) and _is_nested(other)):
            return not (_is_list(one) and _is_list(other) and len(one) and len(other))
        if _lengths(one) != _lengths(other):
            return False
        one, other = _opened(one), _opened(other)
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, LISTS)


def _is_nested(value: Any) -> bool:
    """Whether it holds lists, and besides them nulls alone; of nulls alone nobody can say."""
    if not isinstance(value, LISTS) or not len(value):
        return False
    if not (value[0] is None or isinstance(value[0], LISTS)):
        return False
    if not _is_list(next((inner for inner in value if inner is not None), None)):
        return False
    return all(inner is None or _is_list(inner) for inner in value)


def _lengths(nested: Any) -> list[int]:
    return [0 if inner is None else len(inner) for inner in nested]


def _opened(nested: Any) -> list[Any]:
    return [value for inner in nested if inner is not None for value in inner]
