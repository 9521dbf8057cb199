"""Runs beside each other: test metrics, curves over each other, and what their configs differ in."""

import itertools
from collections.abc import Sequence
from typing import Any

from rtrain.errors import UserError
from rtrain.report.facts import Facts, numbers, read_facts
from rtrain.report.intervals import intervals, spell_interval
from rtrain.report.origin import code_identity, spell_code
from rtrain.report.page import fill
from rtrain.report.panels import panel
from rtrain.report.words import (
    DASH,
    is_better,
    number,
    plain,
    spell_count,
    spell_metric,
    spell_name,
    spell_seconds,
)
from rtrain.storage import Folder

OF_EVERY_RUN = ("name",)
"""Keys in which two runs always differ."""
ABSENT = "(absent)"


def compare(runs: Sequence[str]) -> dict[str, Any]:
    """What `rtrain compare --json` prints of the folders of two runs or more.

    `metrics`: of the `split`, which is test, of trials of a search validation; `differences` are to the first run,
    `best` is the number of the run that the metric's own direction puts first, none where fewer than two runs have it
    or the first ones are equal; `intervals` are of the differences, of runs that kept their scores of the same rows
    (`low`, `high`, `excludes_0`). `config`: the keys that are not the same in all runs, secrets masked. A run that has
    not finished has no metrics yet.

    Raises:
        UserError: fewer than two runs, or there is no run in one of the folders.
    """
    return _compare(_read(runs))


def write_compare(runs: Sequence[str], out: str, found: dict[str, Any] | None = None) -> str:
    """Write the page of `compare` to `out` (a path or any fsspec URI, its folder is made); returns `out`.

    `found`: what `compare` said of these runs, where it was asked already.

    Raises:
        UserError: as `compare`.
    """
    all_facts = _read(runs)
    found = found or _compare(all_facts)
    names = [run["name"] for run in found["runs"]]
    heads = [_head(run, i) for i, run in enumerate(found["runs"])]
    metrics = [_metric_row(row) for row in found["metrics"]]
    config = [{"key": row["key"], "values": [_spell(v) for v in row["values"]]} for row in found["config"]]
    html = fill(
        "compare.html.j2", title=" and ".join(names) if len(names) < 4 else f"{len(names)} runs", heads=heads,
        metrics=metrics, config=config, problems=_problems(all_facts), panels=_panels(all_facts, names),
        notes=found["notes"], split=found["split"],
    )  # fmt: skip
    parent, _, name = out.rpartition("/")
    Folder(parent or ("/" if out.startswith("/") else ".")).write(name, html.encode())
    return out


def spell_differences(found: dict[str, Any]) -> str:
    """What `compare` found, as lines for a terminal: each metric's difference to the first run, and its interval."""
    names = [run["name"] for run in found["runs"]]
    lines = []
    for row in found["metrics"]:
        for name, gap, interval in list(zip(names, row["differences"], row["intervals"], strict=True))[1:]:
            if gap is not None:
                spelled = f"  {spell_interval(interval)}" if interval else ""
                lines.append(f"{row['name']:<20} {name} - {names[0]}: {gap:+.4f}{spelled}")
    return "\n".join([*lines, *found["notes"]])


def _read(runs: Sequence[str]) -> list[Facts]:
    if len(runs) < 2:
        raise UserError(f"compare: {len(runs)} run given, two or more are needed. Give the folders of the runs")
    return [read_facts(run) for run in runs]


def _compare(all_facts: Sequence[Facts]) -> dict[str, Any]:
    results = [facts.result for facts in all_facts]
    names = _names(all_facts)
    runs = [
        {
            "name": name, "folder": facts.folder.uri, "monitor": facts.monitor,
            "finished": bool(facts.result or facts.trial.get("ended") == "finished"),
            "best_step": facts.result.get("best_step", facts.trial.get("best_step")),
            "steps": facts.result.get("steps", facts.trial.get("step")),
            "world_size": facts.result.get("world_size"), "seconds": facts.result.get("seconds"),
            "examples_per_s": facts.result.get("examples_per_s"), "commit": facts.commit or None,
        }
        for name, facts in zip(names, all_facts, strict=True)
    ]  # fmt: skip
    tests = [numbers(result.get("test")) for result in results]
    of_trials = not any(results) and all(facts.parent.get("search") for facts in all_facts)
    if of_trials:  # which are never judged on the test split
        tests = [facts.valid for facts in all_facts]
    metrics = [_judge(name, [test.get(name) for test in tests]) for name in dict.fromkeys(itertools.chain(*tests))]
    flats = [facts.flat() for facts in all_facts]
    keys = dict.fromkeys(key for flat in flats for key in flat if key not in OF_EVERY_RUN)
    valued = {key: [flat.get(key, ABSENT) for flat in flats] for key in keys}
    config = {key: values for key, values in valued.items() if any(value != values[0] for value in values)}
    data = [key for key in config if key.startswith("data.") and key != "data.prefetch"]
    notes = ["Trials of a search: the metrics are those of each one's best step."] if of_trials else []
    between, why = intervals(all_facts, names, [row["name"] for row in metrics])
    for row in metrics:
        row["intervals"] = [None, *(found.get(row["name"]) for found in between)]
    paired = all(between)  # their rows were held against each other
    if data and not paired:
        notes.append(f"The runs differ in their data ({', '.join(data[:5])}): their metrics may be of different rows.")
    notes += why
    codes = [code_identity(facts.starts) for facts in all_facts]
    if all(codes) and len(set(codes)) > 1:
        told = "; ".join(f"{name}: {spell_code(f.starts[-1])}" for name, f in zip(names, all_facts, strict=True))
        notes.append(f"The runs are not of the same code. {told}.")
    rows = [{"key": key, "values": values} for key, values in config.items()]
    split = "validation" if of_trials else "test"
    return {"runs": runs, "split": split, "metrics": metrics, "config": rows, "notes": notes}


def _names(all_facts: Sequence[Facts]) -> list[str]:
    """The runs' names; with a number where two are called alike."""
    names = [facts.name for facts in all_facts]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _judge(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    first = values[0]
    known = [(i, value) for i, value in enumerate(values) if value is not None]
    ahead = [i for i, value in known if all(is_better(name, value, other) for j, other in known if j != i)]
    return {
        "name": name,
        "values": list(values),
        "differences": [None if value is None or first is None else value - first for value in values],
        "best": ahead[0] if len(known) > 1 and ahead else None,
    }


def _problems(all_facts: Sequence[Facts]) -> list[str]:
    return [f"{facts.name}: {problem}." for facts in all_facts for problem in facts.problems.values()]


def _head(run: dict[str, Any], index: int) -> dict[str, Any]:
    seconds = spell_seconds(number(run["seconds"]))
    cells = [spell_count(number(run[key])) for key in ("steps", "best_step", "world_size", "examples_per_s")]
    return {
        "name": run["name"], "colour": f"c{index % 7 + 1}", "finished": run["finished"],
        "cells": [*cells, seconds, str(run["commit"] or DASH)],
    }  # fmt: skip


def _metric_row(row: dict[str, Any]) -> dict[str, Any]:
    cells = []
    given = zip(row["values"], row["differences"], row["intervals"], strict=True)
    for i, (value, gap, interval) in enumerate(given):
        cells.append({
            "value": spell_metric(value), "best": row["best"] == i,
            "gap": "" if not i or gap is None else f"{gap:+.4f}" if gap else "equal",
            "interval": spell_interval(interval) if interval else "",
        })  # fmt: skip
    return {"name": spell_name(row["name"]), "cells": cells}


def _spell(value: object) -> str:
    return ABSENT if value == ABSENT else plain(value, longest=200)


def _panels(all_facts: Sequence[Facts], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each curve that some run has, of all runs that have it."""
    from rtrain.report import figures

    histories = [facts.history for facts in all_facts]
    wanted = [("train", "loss", "Training loss", "smoothed")]
    valid = dict.fromkeys(itertools.chain(*(figures.metric_names(history) for history in histories)))
    wanted += [("valid", name, f"Validation {spell_name(name)}", "") for name in valid]
    wanted += [
        ("train", "examples_per_s", "Examples per second", "smoothed"),
        ("train", "lr", "Learning rate", ""),
        ("train", "grad_norm", "Gradient norm", "smoothed"),
    ]
    made = []
    for kind, name, title, note in wanted:
        having = [i for i, history in enumerate(histories) if len(figures.points(history, kind, name)[0])]
        if having:
            # A run without this curve keeps its colour: the others' are not shifted.
            draw = _drawer(histories, kind, name, names)
            made.append(panel(title, note, draw))
    return made


def _drawer(histories: Sequence[Any], kind: str, name: str, names: Sequence[str]) -> Any:
    from rtrain.report.figures import draw_over

    return lambda ax, colours: draw_over(ax, histories, kind, name, names, colours)
