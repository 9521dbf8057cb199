"""The rows of the test split as a run's best checkpoint scored them, kept so that two runs can be compared row by row.

A Parquet file of the columns task (prefix of the metrics' names), row (number in the split), output, label, group and,
of retrieval models, item. Shape legend: n rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from io import BytesIO
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rtrain.keyed import drawn
from rtrain.metrics.state import Retrieved, RowByRow, Scored, Valued, some_of

TEST_ROWS = "test_rows.parquet"
MOST_ROWS = 2_000_000
"""Of each label; of more a sample is kept, of whole groups."""
KINDS: dict[str, type[Scored] | type[Valued]] = {of.kind: of for of in (Scored, Retrieved, Valued)}
ABOUT = b"rtrain"


def is_kept(of: Any) -> TypeGuard[RowByRow]:
    """Whether it is scored row by row; a rank may have none of the rows."""
    return isinstance(of, RowByRow) and of.kind in KINDS and of.rows is not None


def keep(of: RowByRow, share: float, *, grouped: bool) -> dict[str, NDArray[Any]]:
    """Row, output, label, group and item of about a share of the groups, the same on every rank; else of the rows."""
    columns = of.stored()
    by = columns["group" if grouped else "row"]
    kept = drawn(by) < share * 2.0**64 if share < 1 else np.ones(len(by), bool)
    return {name: values[kept] for name, values in columns.items()}


@dataclass(frozen=True)
class Kept:
    """Rows of every label: on rank 0 those of all ranks, on the others none."""

    tasks: Mapping[str, tuple[str, Mapping[str, NDArray[Any]]]]
    """Prefix of the metrics' names -> what metrics take of it (`RowByRow.kind`), and the rows by column."""
    share: float
    """Of the split's groups, how many are here; 1: all."""
    grouped: bool
    """Whether rows belong together by their group; else each stands for itself."""

    def to_parquet(self, *, first: int) -> bytes:
        """The file; `first`: number of the split's first row."""
        parts = []
        for prefix, (_, rows) in self.tasks.items():
            columns = {name: pa.array(values) for name, values in rows.items()}
            columns["row"] = pa.array(rows["row"] - first)
            columns["task"] = pa.array([prefix] * len(rows["row"]), pa.string()).dictionary_encode()
            parts.append(pa.table(columns))
        about = {
            "kinds": {p: kind for p, (kind, _) in self.tasks.items()},
            "grouped": self.grouped,
            "share": self.share,
        }
        table = pa.concat_tables(parts).unify_dictionaries()
        sink = BytesIO()
        pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps(about)}), sink, compression="zstd")
        return sink.getvalue()


@dataclass(frozen=True)
class TestRows:
    """What another run's rows are compared with, of one label."""

    __test__ = False  # its name begins as pytest's classes do

    scored: Scored | Valued
    """In the order of rows."""
    units: NDArray[np.int64]
    """int64 [n]: what is drawn together when rows are drawn again: its group, or the row itself"""
    grouped: bool
    share: float

    @classmethod
    def read(cls, data: bytes) -> "dict[str, TestRows]":
        """Each label's, by the prefix of its metrics' names.

        Raises:
            ValueError: the bytes are no such file.
        """
        table = pq.read_table(BytesIO(data))
        about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
        if not {"kinds", "grouped", "share"} <= about.keys():
            raise ValueError("it says nothing about its rows")
        tasks = np.asarray(table.column("task").cast(pa.string()).to_numpy(zero_copy_only=False))
        of = {name: table.column(name).to_numpy() for name in ("row", "output", "label", "group", "item")}
        order = np.lexsort((of["item"], of["row"]))
        found = {}
        for prefix, kind in about["kinds"].items():
            mine = order[tasks[order] == prefix]
            given = {"rows": of["row"], "labels": of["label"], "groups": of["group"], "items": of["item"]}
            given |= {"logits": of["output"], "predicted": of["output"]}
            names = [f.name for f in fields(KINDS[kind]) if f.name in given]
            scored = KINDS[kind](**{name: given[name][mine] for name in names})
            # A query's number as a group counts over all splits, as a row within its own.
            by_group = about["grouped"] and not scored.numbers_queries
            units = of["group" if by_group else "row"][mine]
            found[prefix] = cls(scored, units, bool(about["grouped"]), float(about["share"]))
        return found

    def where(self, kept: NDArray[np.bool_], outputs: NDArray[np.float64] | None = None) -> "TestRows":
        """Some of them, bool [n]; `outputs`: what another model says of these, float64 [kept]."""
        called = "logits" if isinstance(self.scored, Scored) else "predicted"
        scored = some_of(self.scored, kept, **({} if outputs is None else {called: outputs}))
        return replace(self, scored=scored, units=self.units[kept])

    def same_rows(self, other: "TestRows") -> bool:
        """Whether both are of the same rows with the same labels and groups, so that their outputs alone differ."""
        if self.scored.kind != other.scored.kind or self.share != other.share or self.grouped != other.grouped:
            return False
        mine, theirs = (of.scored.identity(of.units) for of in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
