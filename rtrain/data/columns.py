"""Encoded rows in memory, and how a batch is cut from them.

Shape legend: N rows, B rows of a batch, D dense features, S single-id features, F all id features, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtrain.batch import Batch, Jagged
from rtrain.data.reader import Whole
from rtrain.encodings import widened
from rtrain.schema import Many, Schema


@dataclass
class Lists:
    """One id list a row: row i has `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[Any]
    """int32 or int64 [sum of lengths]; float32 of weights"""
    offsets: NDArray[np.int64]
    """int64 [N + 1]"""

    @classmethod
    def of(cls, values: NDArray[Any], lengths: NDArray[np.integer]) -> "Lists":
        """From each row's length, [N]."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [N]"""
        return np.diff(self.offsets)

    def padded(self) -> NDArray[np.int64]:
        """int64 [N, T], 0 behind each list's end; T is that of the longest, at least 1."""
        lengths = self.lengths
        out = np.zeros((len(lengths), max(1, int(lengths.max(initial=0)))), np.int64)
        out[np.arange(out.shape[1]) < lengths[:, None]] = self.values
        return out

    def select(self, indices: NDArray[np.integer]) -> "Lists":
        """The lists of the given rows, in their order."""
        starts = self.offsets.take(indices)
        return self.cut(starts, self.offsets.take(indices + 1) - starts)

    def cut(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> "Lists":
        """New lists that are `values[starts[i]:starts[i] + lengths[i]]`."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        where = np.repeat(starts - offsets[:-1], lengths)
        where += np.arange(len(where))
        # The numbers are in range by construction; "clip" spares numpy a buffered check of each.
        return Lists(self.values.take(where, mode="clip") if len(where) else self.values[:0], offsets)


@dataclass
class Columns:
    """Rows as numpy arrays: validated, encoded and normalised, so that a batch is only a gather."""

    schema: Schema
    dense: NDArray[np.float32]
    """[N, D], normalised, or scaled by its encoding: of what is one number here, a batch has every column; a vector's
    numbers side by side"""
    singles: NDArray[np.integer]
    """int32 or int64 [N, S]: side by side, because a row's ids are gathered together"""
    lists: tuple[Lists, ...]
    """The `Many` features, in `schema.ids` order."""
    label: NDArray[np.float32]
    """[N], or [N, L] of a schema of several labels; nan where a row does not have an optional one"""
    group: NDArray[np.int64]
    """[N]: whom the rows are ranked for, as `Batch.group`"""
    row: NDArray[np.int64]
    """[N]: the rows' numbers in their data set"""
    weight: NDArray[np.float32] | None = None
    """[N]: factor on each row's loss; none without `schema.weight`, and of requests"""
    teacher: NDArray[np.float32] | None = None
    """[N]: a teacher's logit, nan where a row has none; none without `schema.teacher`, and of requests"""
    times: tuple[Lists, ...] = ()
    """Of `schema.timed`, in their order, the seconds between each id and its row's own moment."""
    id_weights: tuple[Lists, ...] = ()
    """Of `schema.weighted`, in their order, the weight of each id."""

    @property
    def rows(self) -> int:
        """N."""
        return len(self.label)

    def select(self, indices: NDArray[np.integer]) -> "Columns":
        """The given rows (numbers 0..N-1), in their order."""
        return Columns(
            schema=self.schema,
            dense=self.dense.take(indices, axis=0),
            singles=self.singles.take(indices, axis=0),
            lists=tuple(values.select(indices) for values in self.lists),
            label=self.label.take(indices, axis=0),
            group=self.group.take(indices),
            row=self.row.take(indices),
            weight=None if self.weight is None else self.weight.take(indices),
            teacher=None if self.teacher is None else self.teacher.take(indices),
            times=tuple(ago.select(indices) for ago in self.times),
            id_weights=tuple(weights.select(indices) for weights in self.id_weights),
        )

    def batch(self, *, global_rows: int) -> Batch:
        """All rows as a `Batch`; `global_rows` are those of all data ranks."""
        ids, count = self.schema.ids, self.rows
        lengths_FB = np.ones((len(ids), count), np.int32)
        values = np.empty(self.singles.size + sum(len(x.values) for x in self.lists), np.int64)
        of_weights = dict(zip((f.name for f in self.schema.weighted), self.id_weights, strict=True))
        weights = np.ones(len(values), np.float32) if of_weights else None
        at = single = jagged = 0
        for number, feature in enumerate(ids):
            if isinstance(feature, Many):
                found = self.lists[jagged].values
                lengths_FB[number] = self.lists[jagged].lengths
                jagged += 1
            else:
                found = self.singles[:, single]
                single += 1
            values[at : at + len(found)] = found
            if weights is not None and feature.name in of_weights:
                weights[at : at + len(found)] = of_weights[feature.name].values
            at += len(found)
        return Batch(
            dense=torch.from_numpy(widened(self.dense, self.schema.kept_widths)),
            ids=Jagged(
                tuple(f.name for f in ids),
                torch.from_numpy(values),
                torch.from_numpy(lengths_FB.ravel()),
                None if weights is None else torch.from_numpy(weights),
            ),
            label=torch.from_numpy(self.label),
            group=torch.from_numpy(self.group),
            row=torch.from_numpy(self.row),
            global_rows=global_rows,
            weight=None if self.weight is None else torch.from_numpy(self.weight),
            teacher=None if self.teacher is None else torch.from_numpy(self.teacher),
            times={
                feature.name: torch.from_numpy(ago.padded())
                for feature, ago in zip(self.schema.timed, self.times, strict=True)
            },
        )

    @staticmethod
    def batch_of(parts: Sequence["Columns"], whole: Whole) -> Batch:
        """The rows of all parts as one `Batch`."""
        return concat(parts).batch(global_rows=whole.rows)

    def take(self, indices: NDArray[np.integer], *, global_rows: int) -> Batch:
        """The given rows (numbers 0..N-1) as a `Batch` that shares no memory with these columns."""
        return self.select(indices).batch(global_rows=global_rows)


def concat(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, one after the other; the parts share a schema and there is at least one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Columns(
        schema=first.schema,
        dense=np.concatenate([p.dense for p in parts]),
        singles=np.concatenate([p.singles for p in parts]),
        lists=_joined([p.lists for p in parts]),
        label=np.concatenate([p.label for p in parts]),
        group=np.concatenate([p.group for p in parts]),
        row=np.concatenate([p.row for p in parts]),
        weight=None if first.weight is None else np.concatenate([p.weight for p in parts if p.weight is not None]),
        teacher=None if first.teacher is None else np.concatenate([p.teacher for p in parts if p.teacher is not None]),
        times=_joined([p.times for p in parts]),
        id_weights=_joined([p.id_weights for p in parts]),
    )


def _joined(parts: Sequence[tuple[Lists, ...]]) -> tuple[Lists, ...]:
    """Of each feature the lists of all parts, one after the other."""
    return tuple(
        Lists.of(np.concatenate([x.values for x in same]), np.concatenate([x.lengths for x in same]))
        for same in zip(*parts, strict=True)
    )
