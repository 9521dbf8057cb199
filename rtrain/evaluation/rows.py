"""The rows of the test split as a run's best checkpoint scored them, kept so that two runs can be compared row by row.

A Parquet file of the columns task (prefix of the metrics' names), row (number in the split), output, label, group and,
of retrieval models, item. Shape legend: n rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rtrain.metrics.state import Partial, Retrieved, Scored, Valued

TEST_ROWS = "test_rows.parquet"
MOST_ROWS = 2_000_000
"""Of each label; of more a sample is kept, of whole groups."""
KINDS: dict[str, type[Scored] | type[Valued]] = {"Scored": Scored, "Retrieved": Retrieved, "Valued": Valued}
ABOUT = b"rtrain"


def is_kept(of: Any) -> bool:
    """Whether it is scored row by row; a rank may have none of the rows."""
    return type(of) in KINDS.values() and of.rows is not None


def keep(of: Scored | Valued, share: float, *, grouped: bool) -> Partial:
    """Row, output, label, group and item of about a share of the groups, the same on every rank; else of the rows."""
    assert of.rows is not None and of.groups is not None
    output = of.logits if isinstance(of, Scored) else of.predicted
    items = of.items if isinstance(of, Retrieved) and of.items is not None else np.zeros_like(of.rows)
    by = of.groups if grouped else of.rows
    kept = _mixed(by) < share * 2.0**64 if share < 1 else np.ones(len(by), bool)
    columns: dict[str, NDArray[Any]] = {"row": of.rows, "output": output, "label": of.labels}
    columns |= {"group": of.groups, "item": items}
    return Partial(rows={name: values[kept] for name, values in columns.items()})


def _mixed(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [n], evenly spread and the same for the same number (the finaliser of SplitMix64; Steele et al., 2014)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Kept:
    """Rows of every label, of all ranks."""

    tasks: Mapping[str, tuple[str, Partial]]
    """Prefix of the metrics' names -> what metrics take of it, and the rows."""
    share: float
    """Of the split's groups, how many are here; 1: all."""
    grouped: bool
    """Whether rows belong together by their group; else each stands for itself."""

    def to_parquet(self, *, first: int) -> bytes:
        """The file; `first`: number of the split's first row."""
        parts = []
        for prefix, (_, partial) in self.tasks.items():
            columns = {name: pa.array(values) for name, values in partial.rows.items()}
            columns["row"] = pa.array(partial.rows["row"] - first)
            columns["task"] = pa.array([prefix] * len(partial.rows["row"])).dictionary_encode()
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
            units = of["group" if about["grouped"] else "row"][mine]
            # A retrieval model's groups are its queries' numbers, which count over all splits.
            units = of["row"][mine] if kind == "Retrieved" else units
            found[prefix] = cls(scored, units, bool(about["grouped"]), float(about["share"]))
        return found

    def same_rows(self, other: "TestRows") -> bool:
        """Whether both are of the same rows with the same labels and groups, so that their outputs alone differ."""
        if type(self.scored) is not type(other.scored) or self.share != other.share or self.grouped != other.grouped:
            return False
        mine, theirs = (_identity(of) for of in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def _identity(of: TestRows) -> tuple[NDArray[Any], ...]:
    """What does not depend on the model: of retrieval what was to be found, else every row, its label and group."""
    scored = of.scored
    assert scored.rows is not None
    if isinstance(scored, Retrieved) and scored.items is not None:
        wanted = scored.labels == 1
        return scored.rows[wanted], scored.items[wanted]
    # Groups are numbered by their first row: a number may be an id in one run and a hash in the other.
    _, first, group = np.unique(of.units, return_index=True, return_inverse=True)
    return scored.rows, scored.labels, first[group]
