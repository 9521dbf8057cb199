"""Tables of an export spread over processes: blocks of rows in turn, of which each process has its own in memory.

The first block of one table lies elsewhere than that of another, or the first process would have all small tables.

Each maps all of the export, and a mapped page that nobody reads takes no memory: who asks which for which rows is all
that makes a shard one.
"""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtrain import config
from rtrain.errors import CheckpointError
from rtrain.export.artifact import read_head
from rtrain.export.weights import loading, tables_in
from rtrain.models.ranking import RankingConfig
from rtrain.nn.gathered import scale_of, weights_of
from rtrain.schema import Schema

BLOCK = 4096
"""Rows that lie in one process, side by side: of 16 numbers 256 KiB."""

Rows = Mapping[str, NDArray[np.generic]]


class Shard:
    """What one process has: the tables, as they are stored."""

    @loading
    def __init__(self, uri: str):
        """Map those of an export.

        Raises:
            CheckpointError: no export there, or files that were altered.
        """
        head = read_head(uri, "schema", "Encoders")
        schema: Schema = config.from_dict(head["schema"])
        model: RankingConfig = config.from_dict(head["model"])
        tables = model.blueprint(schema).tables
        names = {name for table in tables for name in (weights_of(table), scale_of(table))}
        self._tables = tables_in(uri, head["files"], names)
        if lacking := [weights_of(table) for table in tables if weights_of(table) not in self._tables]:
            raise CheckpointError(f"export {uri!r}: it lacks {lacking[0]}. Export the run again")

    def rows(self, wanted: Rows) -> dict[str, NDArray[np.generic]]:
        """By name those of a table, [n, ...], in the order of their numbers int64 [n]; beyond its end its last."""
        found = {}
        for name, numbers in wanted.items():
            table = self._tables[name]
            at = torch.from_numpy(np.minimum(numbers, len(table) - 1))
            found[name] = table.index_select(0, at).numpy()
        return found


def split(rows: Mapping[str, Tensor], shards: int) -> list[dict[str, NDArray[np.int64]]]:
    """Of each shard what it is asked for: by name the numbers of rows; one that has none of them is asked nothing."""
    found = list[dict[str, NDArray[np.int64]]]()
    for shard in range(shards):
        own = {name: numbers[_of(name, numbers, shards) == shard].numpy() for name, numbers in rows.items()}
        found.append(own if any(len(numbers) for numbers in own.values()) else {})
    return found


def joined(rows: Mapping[str, Tensor], parts: Sequence[Rows], shards: int) -> dict[str, Tensor]:
    """By name what was asked for, in its order, of what each shard answered."""
    found = {}
    for name, numbers in rows.items():
        owners = _of(name, numbers, shards)
        own = [(shard, torch.from_numpy(np.array(part[name]))) for shard, part in enumerate(parts) if name in part]
        whole = own[0][1].new_empty(len(numbers), *own[0][1].shape[1:])
        for shard, part in own:
            whole[owners == shard] = part
        found[name] = whole
    return found


def _of(table: str, numbers: Tensor, shards: int) -> Tensor:
    return (numbers // BLOCK + crc32(table.encode())) % shards
