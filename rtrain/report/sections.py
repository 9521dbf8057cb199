"""Each section of the page, from the facts to the plain values that the template shows."""

import time
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from rtrain.report.facts import Facts
from rtrain.report.words import (
    DASH,
    is_better,
    number,
    plain,
    spell_bytes,
    spell_count,
    spell_metric,
    spell_name,
    spell_seconds,
    spell_share,
    spell_time,
)
from rtrain.tracking import mask_command

PHASES = {
    "data": "waiting for the next batch and moving it to the device",
    "forward": "table look-ups, the dense tower, the loss",
    "backward": "gradients, and the fused update of the tables",
    "pipeline": "forward and backward passes, and the bubble between them",
    "communication": "collectives under way inside the other phases",
    "optimizer": "the update of the dense parameters",
    "checkpoint": "training waited for a checkpoint: the copy of its state, and the one before",
    "other": "evaluation, the last checkpoint and everything else in the loop",
}
KINDS = ("tables", "tables_optimizer", "parameters", "gradients", "optimizer")
COLOURED = 7
"""Tables with a colour of their own: the largest; more could not be told apart."""
MOST_RANKS = 64


class Missing(Exception):
    """Why a section has nothing to show."""


def headline(facts: Facts) -> dict[str, Any]:
    """Status, verdict and the figures that matter most."""
    result, name = facts.result, facts.monitor
    test, baseline = _numbers(result.get("test")), _numbers(result.get("baseline"))
    status, tone, told = _status(facts)
    sentences = [told] if told else []
    if name in test:
        text = f"{spell_name(name)} is {spell_metric(test[name])} on the test split"
        if name in baseline:
            better = is_better(name, test[name], baseline[name])
            gap = spell_metric(abs(test[name] - baseline[name]))
            text += f", {gap} {'better' if better else 'worse'} than the user and item bias baseline"
        sentences.append(text + ".")
    served, said = _served(result)
    if said:
        sentences.append(said)
    last = facts.history[-1] if facts.history else {}
    steps = number(result.get("steps")) or number(last.get("step"))
    total = max([number(line.get("total_steps")) or 0 for line in facts.lines("start")], default=0)
    trained = facts.lines("train")
    seconds = number(result.get("seconds")) or (number(trained[-1].get("elapsed_s")) if trained else None)
    best = number(result.get("best_step"))
    world = number(result.get("world_size")) or number(facts.placement.get("world_size"))
    attempts = number(result.get("attempts"))
    took = "in the loop" if attempts is None else f"{attempts:.0f} attempt{'' if attempts == 1 else 's'}"
    rate, when = number(result.get("examples_per_s")), "over the whole loop"
    if rate is None and trained:
        rate, when = number(trained[-1].get("examples_per_s")), "at the last point"
    of_all = f"of {spell_count(total)}" if total else "so far"
    tiles = (
        (
            f"test {spell_name(name)}",
            spell_metric(test.get(name)),
            f"baseline {spell_metric(baseline[name])}" if name in baseline else "no baseline",
        ),
        ("served", *served),
        ("steps", spell_count(steps), of_all if best is None else f"best at {spell_count(best)}"),
        ("world size", spell_count(world), _spell_axes(facts.placement.get("axes"))),
        ("duration", spell_seconds(seconds), took),
        ("examples/s", spell_count(rate), when if rate is not None else "not known"),
    )
    return {
        "status": status,
        "tone": tone,
        "sentences": sentences,
        "tiles": [dict(zip(("label", "value", "note"), tile, strict=True)) for tile in tiles],
    }


def _served(result: Mapping[str, Any]) -> tuple[tuple[str, str], str]:
    """The tile of the serving check, and its sentence."""
    difference = number(result.get("served_max_difference"))
    off = f" (largest difference {difference:.1e})" if difference is not None else ""
    if result.get("served") is True:
        text = f"The answers of Ray Serve equal the trainer's predictions{off}."
        return ("yes", "equals the trainer"), text
    if result.get("served") is False:
        text = f"The answers of Ray Serve differ from the trainer's predictions{off}: the export must not be used."
        return ("no", "answers differ"), text
    return (DASH, "not checked"), ""


def _status(facts: Facts) -> tuple[str, str, str]:
    """A word, a tone of the page (good, bad, open), and what there is to say."""
    if facts.result:
        if facts.result.get("served") is False:
            return "finished, not to be served", "bad", ""
        stop = str(facts.result.get("stop") or "")
        return "finished", "good", f"Training stopped early: {stop}." if stop else ""
    if facts.refused:
        return "failed", "bad", facts.refused
    if "result.json" in facts.problems and "not there" not in facts.problems["result.json"]:
        return "unknown", "open", facts.problems["result.json"] + "."
    when = ""
    if facts.alive_at is not None:
        age = max(0.0, time.time() - facts.alive_at)
        before = f"{spell_seconds(max(1.0, round(age)))} before this page was written"
        when = f" Its last sign of life was {spell_time(facts.alive_at)}, {before}."
    again = "It is still going, or it failed; the same command resumes it by its name."
    return "not finished", "open", f"There is no result.json.{when} {again}"


def curves(facts: Facts) -> dict[str, Any]:
    """The pictures of what was learned, step by step."""
    from rtrain.report import figures

    if not facts.lines("train") and not facts.lines("valid"):
        raise Missing(_why(facts, "history.jsonl", "No step has been logged yet."))
    history, panels = facts.history, []

    def add(name: str, title: str, note: str, draw: Any) -> None:
        slug = "".join(c if c.isalnum() else "-" for c in name)
        svg = figures.themed_svg(f"figure-{slug}", Markup.escape(f"{title} over the steps"), draw)
        panels.append({"title": title, "note": note, "svg": Markup(svg)})

    if facts.lines("train"):
        note = "thin: as logged; bold: smoothed"
        if any(line["step"] > 0 for line in facts.lines("start")):
            note += "; dotted: resumed"
        add("loss", "Training loss", note, lambda ax, c: figures.draw_loss(ax, history, c))
    best = number(facts.result.get("best_step"))
    baseline = _numbers(facts.result.get("baseline_valid"))
    for name in figures.metric_names(history):
        draw = _metric_drawer(facts, name, None if best is None else int(best), baseline.get(name))
        note = "best step marked" if best is not None else "its best so far marked"
        add(name, f"Validation {spell_name(name)}", note, draw)
    if len(figures.points(history, "train", "examples_per_s")[0]):
        add("rate", "Examples per second", "over all ranks", lambda ax, c: figures.draw_rate(ax, history, c))
    if len(set(figures.points(history, "train", "lr")[1])) > 1:
        add(
            "lr",
            "Learning rate",
            "of the dense parameters",
            lambda ax, c: figures.draw_rate_of_learning(ax, history, c),
        )
    return {"panels": panels, "problem": facts.problems.get("history.jsonl", "")}


def _metric_drawer(facts: Facts, name: str, best: int | None, baseline: float | None) -> Any:
    from rtrain.report.figures import draw_metric

    return lambda ax, c: draw_metric(ax, facts.history, name, c, best_step=best, baseline=baseline)


def metrics(facts: Facts) -> dict[str, Any]:
    """Test and validation against the baseline."""
    result = facts.result
    test, valid = _numbers(result.get("test")), _numbers(result.get("valid"))
    baseline, baseline_valid = _numbers(result.get("baseline")), _numbers(result.get("baseline_valid"))
    if not test and not valid:
        raise Missing(_why(facts, "result.json", "It holds no test and no validation metrics."))
    rows = []
    for name in dict.fromkeys([*test, *valid, *baseline]):
        gap, tone = DASH, ""
        if name in test and name in baseline:
            gap = f"{test[name] - baseline[name]:+.4f}"
            tone = "good" if is_better(name, test[name], baseline[name]) else "bad"
            gap += " better" if tone == "good" else " worse" if test[name] != baseline[name] else ""
        cells = [spell_metric(source.get(name)) for source in (test, baseline)]
        later = [spell_metric(source.get(name)) for source in (valid, baseline_valid)]
        rows.append(
            {
                "name": spell_name(name),
                "first": cells,
                "gap": gap,
                "tone": tone,
                "later": later,
                "decides": name == facts.monitor,
            }
        )
    return {"rows": rows, "has_baseline": bool(baseline), "best_step": spell_count(number(result.get("best_step")))}


def placement(facts: Facts) -> dict[str, Any]:
    """Which rank holds which part of which table."""
    where = facts.placement
    if not where:
        raise Missing(_why(facts, "placement.json", ""))
    tables = where["tables"]
    if not tables:
        raise Missing("The model has no embedding tables.")
    by_size = sorted(tables, key=lambda t: -t["bytes"])
    colour = {t["table"]: f"c{i + 1}" if i < COLOURED else "c0" for i, t in enumerate(by_size)}
    known = {r["rank"]: r for r in where.get("ranks", [])}
    world = int(where["world_size"])
    held: dict[int, list[dict[str, Any]]] = {rank: [] for rank in range(world)}
    for table in by_size:
        for shard in table["shards"]:
            held[shard["rank"]].append(_block(table, shard, colour[table["table"]]))
    most = max(sum(b["bytes"] for b in blocks) for blocks in held.values()) or 1
    ranks = []
    for rank, blocks in list(held.items())[:MOST_RANKS]:
        for block in blocks:
            block["percent"] = 100 * block["bytes"] / most
        about = known.get(rank, {})
        at = " ".join(
            f"{axis} {i}" for axis, i in about.get("coordinates", {}).items() if where.get("axes", {}).get(axis, 1) > 1
        )
        ranks.append({
            "rank": rank, "blocks": blocks, "total": spell_bytes(sum(b["bytes"] for b in blocks)),
            "where": " · ".join(str(x) for x in (about.get("node"), about.get("device"), at) if x),
        })  # fmt: skip
    rows = [
        {
            "name": t["table"], "colour": colour[t["table"]], "rows": spell_count(t["rows"]), "dim": t["dim"],
            "bytes": spell_bytes(t["bytes"]), "sharding": str(t["sharding"]).replace("_", "-"), "kernel": t["kernel"],
            "features": ", ".join(t["features"]), "split": _split(t), "ranks": _ranks(t["shards"]),
        }
        for t in tables
    ]  # fmt: skip
    total = spell_bytes(sum(t["bytes"] for t in tables))
    sizes = [sum(b["bytes"] for b in blocks) for blocks in held.values()]
    balance = f"{max(sizes) / (sum(sizes) / len(sizes)):.2f}" if sum(sizes) else "1.00"
    return {"ranks": ranks, "hidden": max(0, world - MOST_RANKS), "tables": rows, "total": total, "balance": balance}


def _block(table: Mapping[str, Any], shard: Mapping[str, Any], colour: str) -> dict[str, Any]:
    (row, column), (rows, columns) = shard["offsets"], shard["sizes"]
    part = f"rows {row:,} to {row + rows - 1:,}" if rows else "no rows"
    if columns < table["dim"]:
        part += f", columns {column} to {column + columns - 1}"
    tip = f"{table['table']}: {part}, {spell_bytes(shard['bytes'])}"
    return {"table": table["table"], "bytes": shard["bytes"], "colour": colour, "tip": tip}


def _split(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as a rectangle of 100 x 60, its shards inside."""
    height, width = max(1, table["rows"]), max(1, table["dim"])
    return [
        {
            "x": round(100 * s["offsets"][1] / width, 2), "y": round(60 * s["offsets"][0] / height, 2),
            "width": round(100 * s["sizes"][1] / width, 2), "height": round(60 * s["sizes"][0] / height, 2),
        }
        for s in table["shards"][:128]
    ]  # fmt: skip


def _ranks(shards: list[Mapping[str, Any]]) -> str:
    """`0, 1` or `0 to 63`."""
    found = sorted({int(s["rank"]) for s in shards})
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    return ", ".join(str(r) for r in found[:12]) + (" ..." if len(found) > 12 else "")


def step_time(facts: Facts) -> dict[str, Any]:
    """Where the time of the loop went."""
    seconds = _numbers(facts.result.get("breakdown"))
    total = sum(seconds.values())
    if total <= 0:
        raise Missing(_why(facts, "result.json", "No step of this attempt was timed."))
    parts: list[dict[str, Any]] = []
    for name in [*(p for p in PHASES if p in seconds), *(p for p in seconds if p not in PHASES)]:
        share = seconds[name] / total
        parts.append({
            "name": name, "percent": 100 * share, "share": spell_share(share), "seconds": spell_seconds(seconds[name]),
            "about": PHASES.get(name, ""), "colour": "c0" if name == "other" else f"c{len(parts) % COLOURED + 1}",
        })  # fmt: skip
    return {"parts": parts, "total": spell_seconds(total)}


def memory(facts: Facts) -> dict[str, Any]:
    """Bytes of each kind on each rank."""
    rows = facts.placement.get("bytes_per_rank") or []
    peaks = facts.result.get("peak_bytes_per_rank") or []
    if not rows and not peaks:
        raise Missing(_why(facts, "placement.json", "It holds no bytes per rank."))
    kinds = [k for k in KINDS if any(k in row for row in rows)]
    kinds += sorted({k for row in rows for k in row} - {*KINDS, "rank"})
    shown = []
    for i in range(max(len(rows), len(peaks))):
        row = rows[i] if i < len(rows) else {}
        values = [number(row.get(k)) for k in kinds]
        cells = [spell_bytes(v) for v in values]
        total = spell_bytes(sum(v for v in values if v is not None)) if row else DASH
        peak = spell_bytes(number(peaks[i])) if i < len(peaks) else DASH
        shown.append({"rank": row.get("rank", i), "cells": cells, "total": total, "peak": peak})
    return {"kinds": [k.replace("_", " ") for k in kinds], "rows": shown, "has_peak": bool(peaks)}


def events(facts: Facts) -> dict[str, Any]:
    """What happened to the run besides its steps."""
    if not facts.history:
        raise Missing(_why(facts, "history.jsonl", "Nothing has been logged yet."))
    found = sorted(facts.lines("event"), key=lambda e: number(e.get("at")) or 0.0)
    rows = [
        {
            "step": spell_count(e["step"]),
            "at": spell_time(at) if (at := number(e.get("at"))) is not None else "",
            "text": str(e.get("text", "")),
        }
        for e in found
    ]
    return {"rows": rows}


def repeat(facts: Facts) -> dict[str, Any]:
    """How to run it again."""
    command = str(facts.result.get("command") or "")
    if command:
        return {"command": mask_command(command), "shell": True}
    if not facts.run:
        raise Missing(_why(facts, "run.json", "") + " Without it the run cannot be repeated.")
    path = f"{facts.folder.uri}/run.json"
    lines = ("import json, fsspec, rtrain", "from rtrain import config", f"with fsspec.open({path!r}) as file:")
    return {
        "command": "\n".join([*lines, "    run = config.from_dict(json.load(file))", "rtrain.train(run, fresh=True)"]),
        "shell": False,
    }


def config(facts: Facts) -> dict[str, Any]:
    """The resolved config, a key a line."""
    if not facts.run:
        raise Missing(_why(facts, "run.json", ""))
    return {"lines": [f"{key} = {plain(value)}" for key, value in facts.flat().items()]}


def _why(facts: Facts, name: str, otherwise: str) -> str:
    problem = facts.problems.get(name)
    if problem is None:
        return otherwise
    hint = " It is written when the run finishes." if name == "result.json" and "not there" in problem else ""
    return f"{problem}.{hint}"


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {str(k): v for k, x in values.items() if (v := number(x)) is not None}


def _spell_axes(axes: object) -> str:
    parts = [f"{name} {n}" for name, n in axes.items() if n != 1] if isinstance(axes, Mapping) else []
    return " x ".join(parts) or "one rank along every axis" if axes else "unknown axes"
