"""Folders in the Hive manner, `day=2026-11-26/part-0.parquet`: columns that stand in the names of folders.

Shape legend: F files, K columns of the folders.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from rtrain.errors import DataError

MISSING = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write for a value that there is none of."""


@dataclass(frozen=True)
class Partitions:
    """What the folders say of each file."""

    fields: tuple[pa.Field, ...] = ()
    """[K]: whole numbers where all values are, else text"""
    values: tuple[tuple[Any, ...], ...] = ()
    """[F][K]"""

    @property
    def names(self) -> list[str]:
        """[K]"""
        return [field.name for field in self.fields]

    def columns(self, file: int, wanted: Sequence[str], rows: int) -> dict[str, pa.Array]:
        """Those of the wanted columns that the folders hold, for `rows` rows of a file."""
        found = {f.name: pa.scalar(v, f.type) for f, v in zip(self.fields, self.values[file], strict=True)}
        return {name: pa.repeat(found[name], rows) for name in wanted if name in found}


def is_partition(folder: str) -> bool:
    """Whether a folder's name holds a column, `day=1`."""
    return "=" in folder.strip("=")


def partitions_of(paths: Sequence[str], uri: str) -> Partitions:
    """`paths`: of each file within the folder; none of them lies in a folder that holds no column.

    Raises:
        DataError: files whose folders name different columns.
    """
    pairs = [[tuple(map(unquote, part.split("=", 1))) for part in path.split("/")[:-1]] for path in paths]
    names = [name for name, _ in pairs[0]]
    for path, own in zip(paths, pairs, strict=True):
        if [name for name, _ in own] != names:
            raise DataError(
                f"{uri}: {path} lies in folders of {', '.join(n for n, _ in own) or 'no column'}, but {paths[0]} in "
                f"those of {', '.join(names) or 'no column'}. Write all files with the same columns"
            )
    texts = [[None if value == MISSING else value for _, value in own] for own in pairs]
    fields, columns = list[pa.Field](), list[list[Any]]()
    for name, values in zip(names, zip(*texts, strict=True), strict=True):
        whole = all(value is None or re.fullmatch(r"-?\d{1,18}", value) for value in values)
        fields.append(pa.field(name, pa.int64() if whole else pa.string()))
        columns.append([int(value) if whole and value is not None else value for value in values])
    return Partitions(tuple(fields), tuple(zip(*columns, strict=True)) if columns else tuple(() for _ in paths))
