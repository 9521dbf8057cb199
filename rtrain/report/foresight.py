"""What `plan` foresees, as pictures: memory of each rank, a step's time by part, and what more devices give."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rtrain.outlook.scale import Scaled
from rtrain.parallel.placement import total_bytes
from rtrain.planning import Plan
from rtrain.report.figures import PAPER, Curve, bare

UNITS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"), (1, "B"))
RANKS = 32
"""That are drawn; of more the first ones, since the others are alike."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
"""Okabe and Ito's, which those who see colours otherwise can tell apart."""


def draw_plan(plan: Plan, parts: Mapping[str, float] | None = None) -> Figure:
    """Bytes of each rank, stacked by what they are, under its memory; `parts` of a step (seconds) beside them."""
    wide = parts is not None
    figure = Curve(figsize=(9.6 if wide else 5.6, 3.9), layout="constrained")
    axes = figure.subplots(1, 2 if wide else 1, squeeze=False)[0]
    _draw_memory(axes[0], plan)
    if parts is not None:
        _draw_parts(axes[1], parts)
    return figure


def _draw_memory(ax: Axes, plan: Plan) -> None:
    rows = plan.bytes_per_rank[:RANKS]
    ranks = [row["rank"] for row in rows]
    below = [0.0] * len(rows)
    size, unit = next((s, u) for s, u in UNITS if max(map(total_bytes, rows)) >= s or s == 1)
    kinds = [kind for kind in rows[0] if kind != "rank" and any(row[kind] for row in rows)]
    for kind, colour in zip(kinds, COLOURS, strict=False):
        heights = [row[kind] / size for row in rows]
        ax.bar(ranks, heights, bottom=below, color=colour, width=0.7, label=kind.replace("_", " "))
        below = [a + b for a, b in zip(below, heights, strict=True)]
    most = max(below)
    bare(ax, PAPER)
    memory = plan.memory_per_rank / size
    if memory < 3 * most:  # else the bars would be a line at the bottom
        ax.axhline(memory, color=PAPER.ink, linewidth=1.2, linestyle=(0, (4, 3)), label="memory")
    ax.set_ylim(0, None)
    ax.margins(y=0.12)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} {unit}"))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    more = f", the first {RANKS} of {len(plan.bytes_per_rank):,}" if len(plan.bytes_per_rank) > RANKS else ""
    ax.set_xlabel(f"rank{more}", fontsize=9, color=PAPER.muted, loc="right")
    _title(ax, f"{plan.run}: at most {most:.3g} {unit} a rank, {most / memory:.1%} of its memory")
    ax.legend(frameon=False, fontsize=8, labelcolor=PAPER.ink, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_parts(ax: Axes, parts: Mapping[str, float]) -> None:
    shown = {name: 1000 * seconds for name, seconds in reversed(list(parts.items()))}
    ax.barh(list(shown), list(shown.values()), color=PAPER.main, height=0.62)
    for at, value in enumerate(shown.values()):
        ax.annotate(
            f"{value:.3g}", (value, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
            color=PAPER.muted,
        )  # fmt: skip
    bare(ax, PAPER)
    ax.grid(visible=False)
    ax.margins(x=0.12)
    ax.set_xlabel("milliseconds", fontsize=9, color=PAPER.muted, loc="right")
    _title(ax, f"a step of {sum(shown.values()):.3g} ms, computed")


def draw_scale(scaled: Scaled) -> Figure:
    """Efficiency over the number of devices; step, hours and cost beside it, those that are known."""
    rows = scaled.to_json()["rows"]
    devices = [row["devices"] for row in rows]
    beside = {
        "milliseconds of a step": [1000 * row["step_s"] for row in rows],
        "hours for the same samples": [row["hours"] for row in rows],
        "cost of the same samples": [row["cost"] for row in rows],
    }
    beside = {title: values for title, values in beside.items() if None not in values}
    figure = Curve(figsize=(1.6 + 4.0 * (1 + len(beside)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(beside), squeeze=False)[0]
    axes[0].plot(devices, [100 * row["efficiency"] for row in rows], "-o", color=PAPER.main, linewidth=1.9)
    axes[0].set_ylim(0, 105)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
    _title(axes[0], f"efficiency, {scaled.scaling} scaling")
    for ax, (title, values) in zip(axes[1:], beside.items(), strict=True):
        ax.plot(devices, values, "-o", color=PAPER.accent, linewidth=1.9)
        ax.set_ylim(0, 1.1 * max(values))
        _title(ax, title)
    for ax in axes:
        bare(ax, PAPER)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(devices[:: max(1, len(devices) // 6)]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.set_xlabel("devices", fontsize=9, color=PAPER.muted, loc="right")
    return figure


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=10, color=PAPER.ink, pad=10)
