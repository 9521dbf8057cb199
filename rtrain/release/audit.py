"""A log of changes that nobody can alter unseen: each entry has the sha256 of the one before it.

    audit/00000001.json ...      number, at, by, what, reason, details, before

Entries are created, never written over. `Registry` keeps the sha256 of each model's newest one at MLflow, so that
entries that are cut off the end are missed.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rtrain.errors import RunFailed, UserError
from rtrain.release.gate import who
from rtrain.storage import Folder
from rtrain.storage.patience import PAUSES

NAMED = re.compile(r"\d{8}\.json")
FIRST = "0" * 64
"""What stands for the entry before the first."""
TRIES = 20
"""Of two processes that write at once one takes the next number; more than a few never meet."""


@dataclass(frozen=True)
class Entry:
    """One change."""

    number: int
    at: str
    by: str
    what: str
    """`register`, `promote`, `withdraw` or `rollback`."""
    reason: str
    details: Mapping[str, Any]
    before: str
    """sha256 of the file of the entry before."""

    def __str__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.details.items() if value not in (None, ""))
        return f"{self.number:>5} {self.at} {self.by}: {self.what} ({told}): {self.reason}"


class AuditLog:
    """The log in a folder, local or on any storage."""

    def __init__(self, uri: str):
        self.folder = Folder(uri)

    def append(self, what: str, reason: str, details: Mapping[str, Any]) -> str:
        """Add an entry behind the newest; its sha256.

        Raises:
            RunFailed: others took every number that it tried.
        """
        for tried in range(TRIES):
            names = self._names()
            before = _sha256(self.folder.read(names[-1])) if names else FIRST
            number, at = len(names) + 1, datetime.now(UTC).isoformat(timespec="seconds")
            entry = Entry(number, at, who(), what, reason, dict(details), before)
            data = (json.dumps(asdict(entry), indent=1) + "\n").encode()
            if self.folder.create(f"{number:08}.json", data):
                return _sha256(data)
            time.sleep(PAUSES.uniform(0, 0.01 * (tried + 1)))  # or the faster one of two always takes the next
        raise RunFailed(f"audit log {self.folder.uri!r}: others took each of {TRIES} numbers. Try again")

    def entries(self) -> Iterator[Entry]:
        """Oldest first, as they are there.

        Raises:
            UserError: one that was altered so that it is none.
        """
        for name in self._names():
            try:
                yield Entry(**json.loads(self.folder.read(name)))
            except (ValueError, TypeError):
                raise UserError(f"audit log {self.folder.uri!r}: {name} is no entry. See rtrain audit verify") from None

    def verify(self) -> list[str]:
        """What is wrong with it, a line each; none: nothing, but for entries that are cut off its end."""
        problems, before = list[str](), FIRST
        for number, name in enumerate(self._names(), 1):
            data = self.folder.read(name)
            if name != f"{number:08}.json":
                return [*problems, f"entry {number} is missing: {name} comes in its place"]
            try:
                entry = Entry(**json.loads(data))
            except (ValueError, TypeError):
                return [*problems, f"entry {number} is no entry: it was altered"]
            if entry.number != number or entry.before != before:
                problems.append(f"entry {number} does not follow on the one before it: one of the two was altered")
            before = _sha256(data)
        others = sorted(name for name in self.folder.names() if name.endswith(".json") and not NAMED.fullmatch(name))
        return problems + [f"{name} is no entry, and nothing that rtrain wrote" for name in others]

    def digests(self) -> set[str]:
        """sha256 of each entry, as `append` gave it."""
        return {_sha256(self.folder.read(name)) for name in self._names()}

    def _names(self) -> list[str]:
        return sorted(name for name in self.folder.names() if NAMED.fullmatch(name))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
