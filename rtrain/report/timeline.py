"""Where the time went: of the whole run, and of the loop within it."""

from collections.abc import Mapping
from typing import Any

from rtrain.report.facts import Facts, Missing, numbers, why
from rtrain.report.words import number, spell_seconds, spell_share

STRETCHES = {
    "start-up": "checks of the config, the data and the machine, and the start of Ray",
    "workers": "their start and end: processes, imports, the process group; attempts that failed",
    "build": "data, model, embedding tables and checkpoint, before the first step",
    "loop": "training, its evaluations and checkpoints: the second bar",
    "test": "the best checkpoint loaded and judged on the test split",
    "baseline": "the baseline, computed to compare with",
    "export": "the unsharded model of the best checkpoint",
    "serving check": "Ray Serve started and its answers compared",
    "rest": "what no part of the run accounts for",
}
PHASES = {
    "data": "waiting for the next batch and moving it to the device",
    "forward": "table look-ups, the dense tower, the loss",
    "backward": "gradients, and the update of the tables",
    "pipeline": "forward and backward passes, and the bubble between them",
    "optimizer": "the update of the dense parameters",
    "communication": "collectives under way inside the other phases",
    "evaluation": "the validation split scored",
    "checkpoint": "training waited for a checkpoint: the copy of its state, and the one before",
    "last checkpoint": "the one that training ends with, written while nothing else goes on",
    "records": "history, trackers and other callbacks",
    "sampling": "a few steps under the profiler, which tells communication from the rest",
    "other": "everything else in the loop",
}
RESTS = ("other", "rest")


def step_time(facts: Facts) -> dict[str, Any]:
    """Two bars; of an older run only the loop's."""
    bars = []
    stretches, seconds = numbers(facts.result.get("timeline")), number(facts.result.get("seconds"))
    if stretches and seconds:
        rest = seconds - sum(stretches.values())
        if rest > 0.005 * seconds:
            stretches["rest"] = rest
        caption = "from the start to result.json; writing this page comes after"
        bars.append(_bar("The whole run", caption, stretches, STRETCHES))
    phases = numbers(facts.result.get("breakdown"))
    if sum(phases.values()) > 0:
        caption = "rank 0, the loop of the last attempt"
        bars.append(_bar("The loop", caption, phases, PHASES))
    if not bars:
        raise Missing(why(facts, "result.json", "No step of this attempt was timed."))
    return {"bars": bars}


def _bar(title: str, caption: str, seconds: Mapping[str, float], about: Mapping[str, str]) -> dict[str, Any]:
    total = sum(seconds.values())
    parts: list[dict[str, Any]] = []
    for name in [*(n for n in about if n in seconds), *(n for n in seconds if n not in about)]:
        share = seconds[name] / total
        parts.append({
            "name": name, "percent": 100 * share, "share": spell_share(share), "seconds": spell_seconds(seconds[name]),
            "about": about.get(name, ""), "colour": "c0" if name in RESTS else f"c{len(parts) % 11 + 1}",
        })  # fmt: skip
    return {"title": title, "about": caption, "total": spell_seconds(total), "parts": parts}
