"""The figures of a run: what was learned step by step, and what the model says of the test split."""

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from rtrain.report.facts import Facts, Missing, numbers, why
from rtrain.report.words import number, spell_count, spell_metric, spell_name

SAME_LOSS = ("log_loss", "loss")
"""Validation metrics that are the very loss which is trained on, of a run with one label."""


def panel(title: str, note: str, draw: Callable[..., None], *, over: str = "over the steps") -> dict[str, Any]:
    """One figure with its caption; `draw(ax, colours)`."""
    from rtrain.report.figures import themed_svg

    slug = "".join(c if c.isalnum() else "-" for c in title.lower())
    svg = themed_svg(f"figure-{slug}", str(Markup.escape(f"{title} {over}")), draw)
    return {"title": title, "note": note, "svg": Markup(svg)}


def curves(facts: Facts) -> dict[str, Any]:
    """The pictures of what was learned, step by step."""
    from rtrain.report import figures

    if not facts.lines("train") and not facts.lines("valid"):
        raise Missing(why(facts, "history.jsonl", "No step has been logged yet."))
    history, panels = facts.history, []
    names = figures.metric_names(history)
    if facts.lines("train"):
        note = "thin: as logged; bold: smoothed"
        if any(line["step"] > 0 for line in facts.lines("start")):
            note += "; dotted: resumed"
        same = next((name for name in SAME_LOSS if name in names), "") if not _several_labels(names) else ""
        if same:
            note += "; orange: validation"
        title = "Training and validation loss" if same else "Training loss"
        panels.append(panel(title, note, lambda ax, c: figures.draw_loss(ax, history, c, valid=same)))
    baseline = numbers(facts.result.get("baseline_valid"))
    for name in names:
        panels.append(_metric(facts, name, baseline.get(name)))
    if len(figures.points(history, "train", "examples_per_s")[0]):
        panels.append(panel("Examples per second", "over all ranks", lambda ax, c: figures.draw_rate(ax, history, c)))
    if len(set(figures.points(history, "train", "lr")[1])) > 1:
        note = "of the dense parameters"
        panels.append(panel("Learning rate", note, lambda ax, c: figures.draw_rate_of_learning(ax, history, c)))
    if len(figures.points(history, "train", "grad_norm")[0]):
        note = "of the dense parameters, before clipping"
        panels.append(panel("Gradient norm", note, lambda ax, c: figures.draw_norm(ax, history, c)))
    return {"panels": panels, "problem": facts.problems.get("history.jsonl", "")}


def _several_labels(names: list[str]) -> bool:
    return any(name.endswith("_log_loss") for name in names)


def _metric(facts: Facts, name: str, baseline: float | None) -> dict[str, Any]:
    from rtrain.report import figures

    steps, values = figures.points(facts.history, "valid", name)
    best = figures.best_at(name, values)
    note = f"best {spell_metric(values[best])} at step {spell_count(steps[best])}"
    chosen = number(facts.result.get("best_step"))
    if chosen is not None and chosen != steps[best] and chosen in steps:
        note += f"; ring: the step that {spell_name(facts.monitor)} chose"
    if baseline is not None:
        note += f"; dashed: baseline {spell_metric(baseline)}"
    ring = None if chosen is None or chosen == steps[best] else int(chosen)

    def draw(ax: Any, colours: Any) -> None:
        figures.draw_metric(ax, facts.history, name, colours, chosen=ring, baseline=baseline)

    return panel(f"Validation {spell_name(name)}", note, draw)


def scores(facts: Facts) -> dict[str, Any]:
    """ROC, calibration and score distribution by label; no panels where there are no scores to draw."""
    if "curves.json" in facts.problems:
        raise Missing(facts.problems["curves.json"] + ".")
    return {"panels": [made for label, found in facts.curves.items() for made in _of_label(label, found)]}


def _of_label(label: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    from rtrain.report import figures

    of, made = f" of {label}" if label else "", []
    if found["roc"]["false"]:
        made.append(panel(
            f"ROC{of}", "dashed: guessing", lambda ax, c: figures.draw_roc(ax, found["roc"], c), over="",
        ))  # fmt: skip
    groups = found["calibration"]
    if groups["rows"]:
        note = f"{len(groups['rows'])} groups of rows; dashed: as predicted"
        made.append(panel(
            f"Calibration{of}", note, lambda ax, c: figures.draw_calibration(ax, groups, c), over="",
        ))  # fmt: skip
        note = "share of its class's rows; blue: label 0, orange: 1"
        made.append(panel(
            f"Scores{of}", note, lambda ax, c: figures.draw_scores(ax, found["scores"], c), over="",
        ))  # fmt: skip
    return made
