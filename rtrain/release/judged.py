"""What a gate judges: a finished run with its export, what a process of its own saw of it, and who answers now."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from rtrain import config
from rtrain.errors import CheckpointError, UserError
from rtrain.evaluation.rows import TEST_ROWS, TestRows
from rtrain.export.artifact import HEAD
from rtrain.export.request import rows_of
from rtrain.launch.taking import RESULT
from rtrain.release.probe import Probed, probe
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training.records import PREDICTIONS

EXPORT = "export"


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

    @property
    def ranks(self) -> bool:
        """Whether it gives each row an answer; else it finds items of a catalogue."""
        return "schema" in self.head

    def asked(self) -> tuple[list[dict[str, Any]], list[Any]]:
        """Requests, the first rows of the test split, and what the trainer said of each; none of a retrieval model.

        Raises:
            DataError: the data cannot be read.
            CheckpointError: the run recorded no answers.
        """
        if not self.ranks:
            return [], []
        if not self.folder.exists(PREDICTIONS):
            raise CheckpointError(f"run {self.name!r}: it recorded no {PREDICTIONS} to hold its answers against")
        recorded, run = self.folder.read_json(PREDICTIONS), config.from_dict(self.folder.read_json("run.json"))
        assert isinstance(run, Run)
        dataset: Any = run.data.open()
        return rows_of(dataset.raw("test", 0, len(recorded["rows"])), dataset.schema), recorded["predictions"]


def _modules(tree: Any) -> set[str]:
    """Of classes that a stored config names and that are not rtrain's."""
    if isinstance(tree, Mapping):
        found = set[str]().union(*map(_modules, tree.values()))
        module = str(tree.get("$type", "")).partition(":")[0]
        return found | {module} if module and module.partition(".")[0] != "rtrain" else found
    return set[str]().union(*map(_modules, tree)) if isinstance(tree, list) else set()


@dataclass(frozen=True)
class Judged:
    """A candidate, and what it would take the place of."""

    candidate: Finished
    champion: Finished | None

    @cached_property
    def probed(self) -> Probed:
        """What a process of its own saw of the candidate's export."""
        rows, said = self.candidate.asked()
        own = [name for name in _modules(self.candidate.head) if name in sys.modules]
        return probe(self.candidate.export.uri, rows, said, modules=own)


@dataclass(frozen=True)
class Decision:
    """What a check says."""

    check: str
    passed: bool
    said: str
    """Why, in one line."""
    numbers: Mapping[str, float]
    """What it was decided by."""


class Check(Protocol):
    """A question that a candidate has to stand; a frozen dataclass, whose fields are its bounds."""

    def decide(self, of: Judged) -> Decision:
        """The answer; it raises nothing that is the candidate's fault."""
