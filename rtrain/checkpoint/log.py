"""How the entries of a run's commit log are named, so that those of two runs in one folder never meet.

The first entry has a plain name, which whoever begins first gets; the names of all others carry the
token of the first. A run that is moved aside and started anew has another first entry: what an
attempt of the old one adds late is of another chain, and is passed over.

Logs of an older rtrain have plain names throughout. The next entry that is added to one has a plain
name too, so that it meets a writer of that rtrain, and is the first of a chain.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from rtrain.storage import Folder

TOKEN = 12
"""Hex digits of a token that stand in a name."""
ENTRY = re.compile(r"(\d{8})(?:-([0-9a-f]{12}))?\.json")


@dataclass(frozen=True)
class Chain:
    """The entries of one run, as they were at one look."""

    mark: str
    """What the names of all but the first carry."""
    first: int
    last: int

    def name(self, number: int) -> str:
        """File name of an entry."""
        return f"{number:08d}.json" if number == self.first else f"{number:08d}-{self.mark}.json"

    @property
    def newest(self) -> str:
        """Name of the last entry."""
        return self.name(self.last)

    @property
    def following(self) -> str:
        """Name of the entry that comes next."""
        return self.name(self.last + 1)

    def longer(self) -> "Chain":
        """With one entry more."""
        return replace(self, last=self.last + 1)


def look(folder: Folder, token: str) -> tuple[Chain, dict[str, Any] | None]:
    """The run's chain and its last entry; where there is none yet, the one that `token` may begin.

    One listing, and a read of the chain's first and of its last entry.
    """
    numbers = _numbers(folder.names())
    first = max(numbers[""], default=0)
    before: dict[str, Any] | None = folder.read_json(f"{first:08d}.json") if first else None
    if before is None or not before.get("chained"):
        return Chain(token[:TOKEN], first + 1, first), before
    mark = before["token"][:TOKEN]
    chain = Chain(mark, first, max(numbers.get(mark, []), default=first))
    return chain, before if chain.last == first else folder.read_json(chain.newest)


def is_there(folder: Folder, chain: Chain) -> bool:
    """Whether the chain is still the run's."""
    try:
        return bool(folder.read_json(chain.name(chain.first))["token"][:TOKEN] == chain.mark)
    except FileNotFoundError:
        return False


def entries(folder: Folder) -> list[dict[str, Any]]:
    """All entries of the run that are kept, those of an older rtrain too, the oldest first."""
    chain, last = look(folder, "")
    if last is None:
        return []
    return [folder.read_json(name) for name in before(folder, chain, chain.last)]


def before(folder: Folder, chain: Chain, last: int) -> list[str]:
    """Names of the run's entries up to number `last`, the oldest first; once it is past, not the chain's first one."""
    numbers = _numbers(folder.names())
    plain = [f"{n:08d}.json" for n in numbers[""] if n <= last and (n != chain.first or last == chain.last)]
    return plain + [chain.name(n) for n in numbers.get(chain.mark, []) if n <= last]


def _numbers(names: list[str]) -> dict[str, list[int]]:
    """Mark -> the numbers of its entries, ascending; plain names have the mark \"\"."""
    found: dict[str, list[int]] = {"": []}
    for entry in filter(None, map(ENTRY.fullmatch, sorted(names))):
        found.setdefault(entry[2] or "", []).append(int(entry[1]))
    return found
