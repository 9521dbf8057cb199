"""A finished run with its export, and what is recorded of it."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from rtrain import config
from rtrain.errors import CheckpointError, UserError
from rtrain.evaluation.rows import TEST_ROWS, TestRows
from rtrain.export.artifact import modules_of
from rtrain.export.head import HEAD
from rtrain.export.request import rows_of
from rtrain.launch.taking import RESULT
from rtrain.release.probe import FOUND
from rtrain.run import Run
from rtrain.schema import Schema
from rtrain.storage import Folder
from rtrain.training.records import PREDICTIONS

EXPORT = "export"
Kind = Literal["ranks rows", "finds items", "writes text"]


@dataclass(frozen=True)
class Finished:
    """A finished run that has an export."""

    folder: Folder

    @classmethod
    def read(cls, uri: str) -> "Finished":
        """By the run's folder or its export's.

        Raises:
            UserError: no finished run there, or one without an export.
        """
        parent, _, name = uri.rstrip("/").rpartition("/")
        found = cls(Folder(parent if name == EXPORT and parent else uri))
        if not found.folder.exists(RESULT):
            raise UserError(f"{uri!r}: there is no finished run (no {RESULT}). Give a run's folder, or its export's")
        if not found.export.exists(HEAD):
            raise UserError(f"{uri!r}: the run has no export. Give one that was trained with handoff.export")
        return found

    @property
    def export(self) -> Folder:
        """Where its export is."""
        return self.folder.child(EXPORT)

    @cached_property
    def digest(self) -> str:
        """sha256 of the export's head, which has those of all its files: what a signature is of."""
        return hashlib.sha256(self.export.read(HEAD)).hexdigest()

    @cached_property
    def head(self) -> dict[str, Any]:
        """The export's head."""
        head: dict[str, Any] = self.export.read_json(HEAD)
        return head

    @cached_property
    def result(self) -> dict[str, Any]:
        """What the run ended with."""
        result: dict[str, Any] = self.folder.read_json(RESULT)
        return result

    @cached_property
    def rows(self) -> Mapping[str, TestRows]:
        """The test split's rows as it scored them, by the prefix of their metrics' names; empty: none were kept."""
        return TestRows.read(self.folder.read(TEST_ROWS)) if self.folder.exists(TEST_ROWS) else {}

    @property
    def name(self) -> str:
        """The run's."""
        return str(self.result["run"])

    @cached_property
    def schema(self) -> Schema:
        """Of a ranking model's rows."""
        schema: Schema = config.from_dict(self.head["schema"])
        return schema

    @property
    def own_modules(self) -> list[str]:
        """Of its model's classes outside rtrain, those that are imported here: a process that asks it imports them."""
        return [name for name in modules_of(self.head) if name in sys.modules]

    @property
    def kind(self) -> Kind:
        """What it does for those who ask."""
        return "writes text" if "language" in self.head else "ranks rows" if "schema" in self.head else "finds items"

    @cached_property
    def recorded(self) -> tuple[list[int], list[Any]]:
        """Numbers of the first rows of the test split, and what the trainer said of each.

        Raises:
            CheckpointError: it recorded nothing.
        """
        if not self.folder.exists(PREDICTIONS):
            raise CheckpointError(f"run {self.name!r}: it recorded no {PREDICTIONS} to hold its answers against")
        recorded = self.folder.read_json(PREDICTIONS)
        return recorded["rows"], recorded["predictions"]

    @cached_property
    def texts(self) -> list[list[int]]:
        """Of a language model the tokens of those rows.

        Raises:
            DataError: the data cannot be read.
            CheckpointError: as `recorded`.
        """
        return [self.dataset.shards.sample(number).tolist() for number in self.recorded[0]]

    @cached_property
    def run(self) -> Run:
        """As it was asked for."""
        run = config.from_dict(self.folder.read_json("run.json"))
        assert isinstance(run, Run)
        return run

    @cached_property
    def dataset(self) -> Any:
        """Its data.

        Raises:
            DataError: they cannot be read.
        """
        return self.run.data.open()

    def asked(self) -> tuple[list[Any], list[Any]]:
        """Requests, the first rows of the test split, and what the trainer said of each; of a language model its loss.

        Of a model that finds items who asks, when they had theirs, what is not to be offered to them and what they had
        then (`wanted`), and the items that it found first; none where it ranked drawn candidates alone.

        Raises:
            DataError: the data cannot be read.
            CheckpointError: the run recorded no answers.
        """
        run = self.run
        if self.kind == "writes text":
            return self.texts, self.recorded[1]
        if self.kind == "finds items":
            depth = max((getattr(metric, "k", 0) for metric in run.metrics), default=0)
            found = {} if any(getattr(metric, "sampled", 0) for metric in run.metrics) else self.rows
            if not found:
                return [], []
            return who_asked(self.dataset, found[""].scored, min(depth, FOUND), run.handoff.rows)
        rows, said = self.recorded
        return rows_of(self.dataset.raw("test", 0, len(rows)), self.dataset.schema), said


def who_asked(dataset: Any, found: Any, depth: int, most: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Those of the test split, as the data call them, and the first items of each, by place; of `most` at most."""
    names, numbers = dataset.feedback.names, np.unique(found.groups)[:most]
    user, item = (names[of].to_pylist() if names else None for of in ("user", "item"))
    if not (depth and len(numbers)):
        return [], []

    def called(ids: Any, by: list[Any] | None) -> list[Any]:
        return [by[row] if by else row for row in ids.tolist()]

    def nth(lists: Any, at: int) -> Any:
        return lists.values[lists.offsets[at] : lists.offsets[at + 1]]

    context, times, seen = dataset.whom(numbers)
    order = np.argsort(found.groups, kind="stable")
    starts, stops = (np.searchsorted(found.groups[order], numbers, side=side) for side in ("left", "right"))
    rows, said = list[dict[str, Any]](), list[Any]()
    for at in range(len(numbers)):
        had = called(nth(context, at), user if dataset.longest is None else item)
        rows.append({"whom": had[0] if dataset.longest is None else had, "seen": called(nth(seen, at), item)})
        if times is not None:
            rows[-1]["times"] = nth(times, at).tolist()
        mine = order[starts[at] : stops[at]]
        first = mine[-found.logits[mine] < depth]
        said.append(called(found.items[first][np.argsort(-found.logits[first], kind="stable")], item))
        rows[-1]["wanted"] = called(found.items[mine[found.labels[mine] == 1]], item)
    return rows, said
