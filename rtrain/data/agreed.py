"""One schema for the files of a folder: columns by name, each of the narrowest type that holds what every file has."""

from collections.abc import Iterable

import pyarrow as pa

from rtrain.data.nested import is_list
from rtrain.errors import DataError


def agreed(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """The columns of all files, in the order of the first; `schemas`: of each file its path and what it has.

    Raises:
        DataError: a column that is there twice, that a file lacks, or whose types no one type holds; names both files.
    """
    types, of = dict[str, pa.DataType](), dict[str, str]()
    first = ""
    for path, schema in schemas:
        own = dict(zip(schema.names, schema.types, strict=True))
        if len(own) < len(schema.names):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            raise DataError(f"{path}: there are two columns {twice!r}. Drop or rename one")
        if not first:
            first, types, of = path, own, dict.fromkeys(own, path)
        for name in [*types, *own]:
            known, got = types.get(name), own.get(name)
            held = None if known is None or got is None else _holding(known, got)
            if held is None:
                raise DataError(
                    f"{path}: column {name!r} is {got or 'missing'}, but {known or 'missing'} in "
                    f"{of.get(name, first)}. Write all files of the folder with the same columns"
                )
            if held != known:
                types[name], of[name] = held, path
    return pa.schema(list(types.items()))


def _holding(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """What holds all values of both; none where that is neither of the two, but for whole numbers of either sign."""
    is_ = pa.types
    if one == other or is_.is_null(other):
        return one
    if is_.is_null(one):
        return other
    if is_.is_dictionary(one) or is_.is_dictionary(other):
        return _holding(*(kind.value_type if is_.is_dictionary(kind) else kind for kind in (one, other)))
    for same in (is_.is_signed_integer, is_.is_unsigned_integer, is_.is_floating):
        if same(one) and same(other):
            return max(one, other, key=lambda kind: kind.bit_width)
    both = {one, other}
    if is_.is_integer(one) and is_.is_integer(other):
        return None if pa.uint64() in both else pa.int64()
    if both == {pa.string(), pa.large_string()}:
        return pa.large_string()
    if is_list(one) and is_list(other):
        value = _holding(one.value_type, other.value_type)
        large = is_.is_large_list(one) or is_.is_large_list(other)
        return value and (pa.large_list(value) if large else pa.list_(value))
    return None
