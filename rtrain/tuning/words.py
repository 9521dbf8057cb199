"""What a search says while it runs: a line for each trial that ends, and now and then how it stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from rtrain.tuning.journal import Entry
from rtrain.tuning.pareto import ranked

Objectives = Mapping[str, str]
"""Name -> "max" or "min"."""


def spell(value: Any) -> str:
    """A value in a table or a line."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def ended_line(entry: Entry, objectives: Objectives, entries: Sequence[Entry], most: int) -> str:
    """How one trial ended, and how many have."""
    number = sum(bool(e.ended) for e in entries)
    with_what = ", ".join(f"{key} {spell(value)}" for key, value in entry.changes.items())
    if entry.error:
        how = f"{entry.ended} ({entry.error})"
    else:
        values = ", ".join(f"{name} {spell(entry.values[name])}" for name in objectives if name in entry.values)
        at = f", best at step {entry.best_step}" if values and entry.best_step not in (None, entry.step) else ""
        how = f"{entry.ended} at step {entry.step}{at}: {values or 'nothing reported'}"
    return f"trial {entry.number} ({number} of {most} ended) {how}{best_so_far(objectives, entries)}, with {with_what}"


def best_so_far(objectives: Objectives, entries: Sequence[Entry]) -> str:
    """In brackets: the best trial's value of the first objective; empty before there is one."""
    found = ranked(entries, objectives)
    if not found or not found[0].values:
        return ""
    name = next(iter(objectives))
    return f" (best {spell(found[0].values[name])} of trial {found[0].number})"


def standing_line(objectives: Objectives, entries: Sequence[Entry], most: int, seconds: float) -> str:
    """How many trials have ended, how many are under way, and how long the rest may take."""
    ended = sum(bool(entry.ended) for entry in entries)
    line = f"{ended} of {most} trials ended, {len(entries) - ended} under way{best_so_far(objectives, entries)}"
    line += f"; {duration(seconds)} so far"
    return line + (f", about {duration(seconds / ended * (most - ended))} more" if ended else "")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
