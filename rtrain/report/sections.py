"""Each section of the page, from the facts to the plain values that the template shows."""

import time
from collections.abc import Mapping
from typing import Any

from rtrain.metrics.names import is_of_slice
from rtrain.report.beside import beside, others_ahead
from rtrain.report.facts import Facts, Missing, numbers, why
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
    spell_time,
)
from rtrain.tracking import mask_command

KINDS = ("tables", "tables_optimizer", "parameters", "gradients", "optimizer")
COLOURED = 7
"""Tables with a colour of their own: the largest; more could not be told apart."""
MOST_RANKS = 64


def headline(facts: Facts) -> dict[str, Any]:
    """Status, verdict and the figures that matter most."""
    result, name = facts.result, facts.monitor
    test, baseline = numbers(result.get("test")), numbers(result.get("baseline"))
    status, tone, phrase = _status(facts)
    sentences = [phrase] if phrase else []
    if name in test:
        text = f"{spell_name(name)} is {spell_metric(test[name])} on the test split"
        if name in baseline:
            better = is_better(name, test[name], baseline[name])
            gap = spell_metric(abs(test[name] - baseline[name]))
            text += f", {gap} {'better' if better else 'worse'} than the baseline ({_baseline_name(result)})"
        sentences.append(text + ".")
    whole = [n for n in test if not is_of_slice(n)]  # of slices the table tells
    ahead = [n for n in whole if n in baseline and is_better(n, baseline[n], test[n])]
    if ahead:
        pairs = [(spell_name(n), spell_metric(baseline[n]), spell_metric(test[n])) for n in ahead]
        said = ", ".join(f"{metric} ({theirs} against {ours})" for metric, theirs, ours in pairs)
        sentences.append(f"The baseline is better in {said}.")
    if others := others_ahead(result, name):
        sentences.append(others)
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


def metrics(facts: Facts) -> dict[str, Any]:
    """Test and validation against the baseline."""
    result = facts.result
    test, valid = numbers(result.get("test")), numbers(result.get("valid"))
    baseline, baseline_valid = numbers(result.get("baseline")), numbers(result.get("baseline_valid"))
    if not test and not valid:
        raise Missing(why(facts, "result.json", "It holds no test and no validation metrics."))
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
    return {
        "rows": rows,
        "has_baseline": bool(baseline),
        "baseline_name": _baseline_name(result),
        "beside": beside(result),
        "best_step": spell_count(number(result.get("best_step"))),
    }


def _baseline_name(result: Mapping[str, Any]) -> str:
    """Older results have one kind, without its name."""
    return str(result.get("baseline_name") or "user and item means alone")


def placement(facts: Facts) -> dict[str, Any]:
    """Which rank holds which part of which table."""
    where = facts.placement
    if not where:
        raise Missing(why(facts, "placement.json", ""))
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


def memory(facts: Facts) -> dict[str, Any]:
    """Bytes of each kind on each rank."""
    rows = facts.placement.get("bytes_per_rank") or []
    peaks = facts.result.get("peak_bytes_per_rank") or []
    if not rows and not peaks:
        raise Missing(why(facts, "placement.json", "It holds no bytes per rank."))
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
        raise Missing(why(facts, "history.jsonl", "Nothing has been logged yet."))
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


def surroundings(facts: Facts) -> dict[str, Any]:
    """What the run was trained with; no rows of a run that an older rtrain trained."""
    rows: list[tuple[str, str]] = []
    commit = facts.result.get("commit")
    if commit:
        rows.append(("commit", str(commit)))
    if facts.data:
        rows.append(("data, by their fingerprint", facts.data))
    versions = facts.surroundings.get("versions") or {}
    if versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    for node, about in (facts.surroundings.get("nodes") or {}).items():
        parts = [f"{about['cores']} cores of {about['cpu']}", f"{spell_bytes(number(about['memory_bytes']))} of memory"]
        parts += [f"{about['gpus'].count(gpu)} x {gpu}" for gpu in dict.fromkeys(about["gpus"])]
        rows.append((str(node), ", ".join(parts)))
    return {"rows": rows}


def repeat(facts: Facts) -> dict[str, Any]:
    """How to run it again."""
    command = str(facts.result.get("command") or "")
    if command:
        return {"command": mask_command(command), "shell": True}
    if not facts.run:
        raise Missing(why(facts, "run.json", "") + " Without it the run cannot be repeated.")
    path = f"{facts.folder.uri}/run.json"
    lines = ("import json, fsspec, rtrain", "from rtrain import config", f"with fsspec.open({path!r}) as file:")
    return {
        "command": "\n".join([*lines, "    run = config.from_dict(json.load(file))", "rtrain.train(run, fresh=True)"]),
        "shell": False,
    }


def config(facts: Facts) -> dict[str, Any]:
    """The resolved config, a key a line."""
    if not facts.run:
        raise Missing(why(facts, "run.json", ""))
    return {"lines": [f"{key} = {plain(value)}" for key, value in facts.flat().items()]}


def _spell_axes(axes: object) -> str:
    parts = [f"{name} {n}" for name, n in axes.items() if n != 1] if isinstance(axes, Mapping) else []
    return " x ".join(parts) or "one rank along every axis" if axes else "unknown axes"
