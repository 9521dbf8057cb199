"""report.html of a search: written at its end, and by `rtrain report` while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rtrain import config
from rtrain.report.facts import SEARCH
from rtrain.report.page import REPORT, fill
from rtrain.storage import Folder
from rtrain.tuning.journal import Entry, Journal
from rtrain.tuning.pareto import front, ranked
from rtrain.tuning.pictures import panels
from rtrain.tuning.words import duration, spell


def is_search(folder: str) -> bool:
    """Whether a folder (any URI) is a search's."""
    return Folder(folder).exists(SEARCH)


def report_of(folder: str) -> str:
    """Write the page of a search that may still run, from what its journal says; its URI."""
    run = config.from_dict(Folder(folder).read_json(SEARCH)["run"])
    storage, _, name = folder.rstrip("/").rpartition("/")
    return write_report(Journal(replace(run, name=name, storage=storage or ".")), {}, "")


def write_report(journal: Journal, importances: Mapping[str, float], closed: str) -> str:
    """Write the page beside the trials; its URI. `closed`: why the search ended before its trials had."""
    entries = list(journal.entries.values())
    asked = journal.folder.read_json(SEARCH)
    space: Mapping[str, str] = asked["space"]
    objectives: Mapping[str, str] = asked["objectives"]
    spent = journal.spent()
    order = ranked(entries, objectives)
    order += [entry for entry in entries if entry not in order]
    good = {entry.number for entry in front(entries, objectives)}
    html = fill(
        "search.html.j2",
        title=f"{journal.run.name}: {len(entries)} trials",
        notes=_notes(order, objectives, spent, closed),
        panels=panels(entries, space, objectives, importances),
        keys=list(space),
        objectives=list(objectives),
        rows=[_row(entry, space, objectives, good) for entry in order],
        space=list(space.items()),
    )
    journal.folder.write(REPORT, html.encode())
    return f"{journal.folder.uri}/{REPORT}"


def _notes(order: Sequence[Entry], objectives: Mapping[str, str], spent: Mapping[str, float], closed: str) -> list[str]:
    notes = []
    if order and order[0].values:
        best = ", ".join(f"{name} {spell(order[0].values[name])}" for name in objectives if name in order[0].values)
        with_what = ", ".join(f"{key} {spell(value)}" for key, value in order[0].changes.items())
        notes.append(f"Best: trial {order[0].number}, {best}, with {with_what}.")
    counts = {how: sum(e.ended == how for e in order) for how in ("finished", "stopped", "failed", "refused", "")}
    ended = ", ".join(f"{count} {how or 'under way'}" for how, count in counts.items() if count)
    notes.append(f"{ended}; {duration(spent['seconds'])}, {spent['worker_seconds'] / 3600:.2f} worker hours.")
    return notes + ([f"Ended before its trials had: {closed}."] if closed else [])


def _row(entry: Entry, space: Mapping[str, str], objectives: Mapping[str, str], good: set[int]) -> dict[str, Any]:
    cells = [spell(entry.changes[key]) if key in entry.changes else "-" for key in space]
    cells += [spell(entry.values[name]) if name in entry.values else "-" for name in objectives]
    return {
        "name": entry.name,
        "cells": cells,
        "steps": entry.step,
        "ended": f"{entry.ended or 'under way'}{f': {entry.error}' if entry.error else ''}",
        "good": entry.number in good,
    }
