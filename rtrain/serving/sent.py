"""Requests of Python's own clients as JSON: values of numpy and pandas, too, and a word on what JSON cannot say."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rtrain.errors import DataError

MISSING = ("NAType", "NaTType")
"""Classes of what pandas does not know; it is no dependency."""


def as_json(body: Mapping[str, Any]) -> str:
    """
    Raises:
        DataError: a value that JSON cannot say, by its place.
    """
    try:
        return json.dumps(body, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        place, value = next(_wrong("", body), ("", None))
        if not place:
            raise DataError(f"the request has what JSON cannot say ({error})") from None
        if isinstance(value, float):
            raise DataError(f"{place}: JSON has no {value}. Send None for what is missing") from None
        raise DataError(f"{place}: JSON cannot say a {type(value).__name__}, as {value!r:.60}") from None


def rows_of(rows: Any) -> list[Any]:
    """One row, several, or those of a pandas DataFrame, in which NaN is what is missing.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(rows, Mapping):
        return [rows]
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):
        return [{name: None if _is_nan(x) else x for name, x in row.items()} for row in rows.to_dict("records")]
    return several(rows, "rows", "one row or several, each a dict by feature")


def several(values: Any, name: str, wanted: str) -> list[Any]:
    """
    Raises:
        DataError: they are not several.
    """
    if isinstance(values, str | bytes | Mapping):
        raise DataError(f"{name}: {wanted}, got {values!r:.60}")
    try:
        return list(values)
    except TypeError:
        raise DataError(f"{name}: {wanted}, got {values!r:.60}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if type(value).__name__ in MISSING:
        return None
    raise TypeError(f"{type(value).__name__} is no value of JSON's")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _wrong(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Places whose value JSON cannot say, with it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _wrong(f"{place}.{key}" if place else str(key), inner)
    elif isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        for number, inner in enumerate(value):
            yield from _wrong(f"{place}[{number}]", inner)
    elif isinstance(value, float):  # numpy's float64 is one
        if not math.isfinite(value):
            yield place, value
    elif not (value is None or isinstance(value, str | int)):
        try:
            yield from _wrong(place, _plain(value))
        except TypeError:
            yield place, value
