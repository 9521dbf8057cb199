"""The model beside all that it is held against, as the page's section of metrics shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rtrain.metrics.names import is_of_slice
from rtrain.report.facts import numbers
from rtrain.report.intervals import spell_interval
from rtrain.report.words import DASH, is_better, spell_metric, spell_name


def beside(result: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the baselines, and a row for each metric of the test split that one of them has; none of slices.

    A cell: the baseline's `value`, the model's `gap` to it, the `interval` of that, and its `tone` (good or bad where
    the interval leaves out 0, or where there is none).
    """
    baselines = _baselines(result)
    test = {name: value for name, value in numbers(result.get("test")).items() if not is_of_slice(name)}
    rows = [
        {"name": spell_name(name), "value": spell_metric(value), "cells": [_cell(name, value, of) for of in baselines]}
        for name, value in test.items()
        if any(name in numbers(of.get("test")) for of in baselines)
    ]
    return {"names": [str(of.get("name")) for of in baselines] if rows else [], "rows": rows}


def others_ahead(result: Mapping[str, Any], metric: str) -> str:
    """A sentence about baselines behind the first that beat the model in this metric; empty where none does."""
    ours = numbers(result.get("test")).get(metric)
    if ours is None:
        return ""
    found = [(str(of.get("name")), numbers(of.get("test")).get(metric)) for of in _baselines(result)[1:]]
    ahead = [f"{name} ({spell_metric(value)})" for name, value in found if value and is_better(metric, value, ours)]
    verb = "reach" if len(ahead) > 1 else "reaches"
    return f"A better {spell_name(metric)} {verb}: {', '.join(ahead)}." if ahead else ""


def _baselines(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """None in results of older runs."""
    stored = result.get("baselines")
    return [of for of in stored if isinstance(of, Mapping)] if isinstance(stored, list) else []


def _cell(name: str, ours: float, baseline: Mapping[str, Any]) -> dict[str, str]:
    theirs = numbers(baseline.get("test")).get(name)
    if theirs is None:
        return {"value": DASH, "gap": "", "interval": "", "tone": ""}
    interval = (baseline.get("intervals") or {}).get(name)
    sure = interval is None or interval["excludes_0"]
    tone = "good" if is_better(name, ours, theirs) else "bad"
    return {
        "value": spell_metric(theirs),
        "gap": f"{ours - theirs:+.4f}",
        "interval": spell_interval(interval) if interval else "",
        "tone": tone if sure and ours != theirs else "",
    }
