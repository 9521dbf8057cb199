"""How sure the difference of two runs is: the paired bootstrap of the rows that both scored."""

from collections.abc import Sequence
from typing import Any

from rtrain.errors import one_line
from rtrain.evaluation.rows import TEST_ROWS, TestRows
from rtrain.metrics.names import spelled
from rtrain.metrics.paired import Side, paired_intervals
from rtrain.metrics.state import Weighable, takes
from rtrain.report.facts import Facts

Told = dict[str, dict[str, Any]]
"""Metric -> `low`, `high` and `excludes_0`."""


def intervals(all_facts: Sequence[Facts], names: Sequence[str], metrics: Sequence[str]) -> tuple[list[Told], list[str]]:
    """Of each run but the first, its metrics' differences to the first; and why there are none, a line a run."""
    if not metrics or sum(bool(facts.result) for facts in all_facts) < 2:
        return [{} for _ in all_facts[1:]], []
    first, problem = _read(all_facts[0], names[0])
    if not first:
        return [{} for _ in all_facts[1:]], [problem]
    found, notes = list[Told](), []
    for facts, name in zip(all_facts[1:], names[1:], strict=True):
        rows, problem = _read(facts, name)
        intervals, same = _between(first, rows, metrics)
        if rows and not same:
            problem = (
                f"{names[0]} and {name} were not scored on the same rows of the test split: their differences have no "
                "interval. Train both on the same data and split"
            )
        found.append(intervals)
        notes += [problem] if problem else []
        if intervals and next(iter(rows.values())).share < 1:
            share = next(iter(rows.values())).share
            notes.append(f"The intervals of {name} are of a sample, {share:.1%} of the test split.")
    return found, notes


def spell_interval(interval: dict[str, Any]) -> str:
    """`95 % [+0.0012, +0.0180], not 0`"""
    verdict = "not 0" if interval["excludes_0"] else "may be 0"
    return f"95 % [{interval['low']:+.4f}, {interval['high']:+.4f}], {verdict}"


def _read(facts: Facts, name: str) -> tuple[dict[str, TestRows], str]:
    """Rows by label; why there are none."""
    if not facts.result:
        return {}, ""  # the page says that it has not finished
    try:
        if TEST_ROWS in facts.folder.names():
            return TestRows.read(facts.folder.read(TEST_ROWS)), ""
    except (OSError, ValueError, KeyError) as error:
        return {}, f"{name}: {TEST_ROWS} cannot be read ({one_line(error)}): its differences have no interval."
    return {}, f"{name} kept no {TEST_ROWS}, as language models and older runs do not: no interval of its differences."


def _between(one: dict[str, TestRows], other: dict[str, TestRows], metrics: Sequence[str]) -> tuple[Told, bool]:
    """The intervals; and whether the rows of every label that both have are the same."""
    found: Told = {}
    both = [prefix for prefix in one if prefix in other]
    if not both or not all(one[prefix].same_rows(other[prefix]) for prefix in both):
        return found, False
    # A name is of the label whose prefix is the longest that fits.
    of_label = {name: max((p for p in one if name.startswith(p)), key=len, default="") for name in metrics}
    for prefix in both:
        a, b = one[prefix], other[prefix]
        wanted = dict[str, Weighable]()
        for name in metrics:
            metric = spelled(name.removeprefix(prefix)) if of_label[name] == prefix else None
            if metric and takes(metric, type(a.scored)) and (a.grouped or not metric.by_group):
                wanted[name] = metric
        for name, between in paired_intervals(Side(a.scored, a.units), Side(b.scored, b.units), wanted).items():
            if between:
                found[name] = {"low": between.low, "high": between.high, "excludes_0": between.excludes_zero}
    return found, True
