"""What a search shows while it runs: on a terminal a table that is drawn anew, elsewhere lines.

python recipes/dlrm_movielens.py tune         a table below, lines above it
... 2>&1 | tee search.log, a job's log, a notebook       lines alone
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rtrain.tuning.journal import Entry
from rtrain.tuning.pareto import ranked
from rtrain.tuning.words import Objectives, spell, standing_line

EVERY_S = 15.0
"""Seconds between two lines on how the search stands, where there is no table."""
ROWS = 12
"""Trials in the table: those under way, then the best."""


@dataclass(frozen=True)
class Point:
    """The newest report of a trial under way."""

    step: int
    values: Mapping[str, float]


@dataclass
class Board:
    """How one search stands; a context manager for as long as it runs."""

    name: str
    objectives: Objectives
    most: int
    """Trials of the search."""
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _entries: Sequence[Entry] = ()
    _points: dict[int, Point] = field(default_factory=dict)
    _live: Live | None = None
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def __enter__(self) -> "Board":
        if self.console.is_terminal and not self.console.is_jupyter:
            # What others write on standard error goes above the table; standard output is the answer's.
            self._live = Live(
                get_renderable=self._picture, console=self.console, refresh_per_second=1, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def show(self, entries: Sequence[Entry], points: Mapping[int, Point]) -> None:
        """What has changed: all trials so far, and by number the newest report of those under way."""
        self._entries, self._points = tuple(entries), dict(points)
        now = time.monotonic()
        if self._live is None and now - self._said >= EVERY_S:
            self._said = now
            self.say(standing_line(self.objectives, self._entries, self.most, now - self._began))

    def _picture(self) -> Group:
        standing = standing_line(self.objectives, self._entries, self.most, time.monotonic() - self._began)
        return Group(Text(f"{self.name}: {standing}", no_wrap=True, overflow="ellipsis"), self.table())

    def table(self) -> Table:
        """Trials under way, then the best."""
        entries = self._entries
        under_way = [e for e in entries if not e.ended]
        best = ranked([e for e in entries if e.ended], self.objectives)
        shown = (under_way + best)[:ROWS]
        keys = list(dict.fromkeys(key for entry in shown for key in entry.changes))
        table = Table(box=None, pad_edge=False)
        for name in ("trial", *keys, *self.objectives, "steps", ""):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for entry in shown:
            point = self._points.get(entry.number) if not entry.ended else None
            values = entry.values if entry.ended else point.values if point else {}
            table.add_row(
                str(entry.number),
                *(spell(entry.changes[key]) if key in entry.changes else "-" for key in keys),
                *(spell(values[name]) if name in values else "-" for name in self.objectives),
                str(entry.step if entry.ended else point.step if point else 0),
                entry.ended or "under way",
            )
        return table
