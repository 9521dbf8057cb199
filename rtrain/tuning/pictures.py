"""The pictures of a search: how it went, which fields matter, and where in them the good values lie."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rtrain.report.figures import Colours, bare
from rtrain.report.panels import panel
from rtrain.tuning.journal import Entry
from rtrain.tuning.pareto import front

Draw = Callable[[Axes, Colours], None]
SLICES = 12
"""Fields of which each has a picture of its own, the most important first."""


def panels(
    entries: Sequence[Entry],
    domains: Mapping[str, str],
    objectives: Mapping[str, str],
    importances: Mapping[str, float],
) -> list[dict[str, Any]]:
    """All pictures that the trials so far have something to show in."""
    known = [e for e in entries if all(name in e.values for name in objectives)]
    if not known:
        return []
    name, mode = next(iter(objectives.items()))
    made = [panel("Trials", f"{name}; the line: best so far", _history(known, name, mode), over="in their order")]
    if len(objectives) > 1:
        second = list(objectives)[1]
        note = "joined: not beaten in both" if len(objectives) == 2 else "joined: not beaten in all objectives"
        made.append(panel(f"{name} against {second}", note, _pareto(known, objectives, name, second), over=""))
    if importances:
        made.append(panel("Importance", "share of the differences explained", _bars(importances), over="of each field"))
    if len(domains) > 1:
        note = f"each line a trial; orange: the best tenth by {name}"
        made.append(panel("Fields together", note, _parallel(known, domains, name, mode), over="of all trials"))
    order = sorted(domains, key=lambda key: -importances.get(key, 0.0))
    made += [
        panel(key, f"against {name}", _slice(known, key, domains[key], name), over=f"against {name}")
        for key in order[:SLICES]
        if any(key in entry.changes for entry in known)
    ]
    return made


def _values(entries: Sequence[Entry], name: str) -> np.ndarray:
    return np.array([entry.values[name] for entry in entries])


def _whole(entries: Sequence[Entry]) -> np.ndarray:
    return np.array([entry.ended == "finished" for entry in entries])


def _history(entries: Sequence[Entry], name: str, mode: str) -> Draw:
    def draw(ax: Axes, colours: Colours) -> None:
        numbers, values, whole = np.array([e.number for e in entries]), _values(entries, name), _whole(entries)
        best = (np.maximum if mode == "max" else np.minimum).accumulate(values)
        ax.step(numbers, best, where="post", color=colours.main, linewidth=1.6)
        _dots(ax, numbers, values, whole, colours)
        ax.set_xlabel("trial", color=colours.muted, fontsize=8)
        bare(ax, colours)

    return draw


def _dots(ax: Axes, x: Any, y: Any, whole: np.ndarray, colours: Colours) -> None:
    """Filled: finished; hollow: stopped, so of fewer steps."""
    ax.plot(x[whole], y[whole], "o", color=colours.accent, markersize=5, linestyle="none")
    ax.plot(
        x[~whole], y[~whole], "o", markerfacecolor="none", markeredgecolor=colours.muted, markersize=5, linestyle="none"
    )


def _pareto(entries: Sequence[Entry], objectives: Mapping[str, str], first: str, second: str) -> Draw:
    def draw(ax: Axes, colours: Colours) -> None:
        _dots(ax, _values(entries, second), _values(entries, first), _whole(entries), colours)
        best = sorted(front(entries, objectives), key=lambda e: e.values[second])
        ax.plot(_values(best, second), _values(best, first), "-o", color=colours.main, markersize=6, linewidth=1.6)
        ax.set_xlabel(second, color=colours.muted, fontsize=8)
        bare(ax, colours)

    return draw


def _bars(importances: Mapping[str, float]) -> Draw:
    def draw(ax: Axes, colours: Colours) -> None:
        keys = sorted(importances, key=lambda key: importances[key])
        ax.barh(keys, [importances[key] for key in keys], color=colours.main, height=0.6)
        ax.set_xlim(0, 1)
        bare(ax, colours)

    return draw


def _position(entry: Entry, key: str, domain: str) -> float:
    """Where a trial's value lies: its logarithm, in a domain that is even in it."""
    value = float(entry.drawn[key])
    return float(np.log10(value)) if domain.startswith("loguniform") else value


def _parallel(entries: Sequence[Entry], domains: Mapping[str, str], name: str, mode: str) -> Draw:
    def draw(ax: Axes, colours: Colours) -> None:
        keys = list(domains)
        values = _values(entries, name) * (1 if mode == "max" else -1)
        least = np.quantile(values, 0.9)
        spans = {}
        for key in keys:
            there = [_position(e, key, domains[key]) for e in entries if key in e.drawn]
            spans[key] = (min(there, default=0.0), max(there, default=1.0))
        for entry, value in sorted(zip(entries, values, strict=True), key=lambda pair: pair[1]):
            heights = []
            for key in keys:
                low, high = spans[key]
                place = (
                    (_position(entry, key, domains[key]) - low) / (high - low or 1.0) if key in entry.drawn else np.nan
                )
                heights.append(place)
            good = value >= least
            ax.plot(
                range(len(keys)), heights, "-", marker="o", markersize=3, linewidth=1.6 if good else 0.8,
                color=colours.accent if good else colours.muted, alpha=1.0 if good else 0.5, zorder=3 if good else 2,
            )  # fmt: skip
        ax.set_xticks(range(len(keys)), keys, rotation=20, ha="right")
        ax.set_yticks([0, 1], ["lowest", "highest"])
        bare(ax, colours)

    return draw


def _slice(entries: Sequence[Entry], key: str, domain: str, name: str) -> Draw:
    def draw(ax: Axes, colours: Colours) -> None:
        having = [entry for entry in entries if key in entry.drawn]
        _dots(ax, np.array([float(e.drawn[key]) for e in having]), _values(having, name), _whole(having), colours)
        if domain.startswith("loguniform"):
            ax.set_xscale("log")
        if domain.startswith("choice"):
            labels = {int(e.drawn[key]): str(e.changes[key]) for e in having}
            ax.set_xticks(list(labels), [label[:24] for label in labels.values()])
            ax.margins(x=0.2)
        bare(ax, colours)

    return draw
