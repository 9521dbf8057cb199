"""The curves of a run, drawn by matplotlib: as SVG that follows the page's theme, and as a picture for notebooks."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from rtrain.report.words import is_better, number, spell_metric, spell_name

POINTS = 1500
"""Points of a curve beyond which neighbours are averaged."""
NOT_METRICS = ("kind", "step", "epoch", "at", "elapsed_s")

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Colours:
    """What a curve is drawn in."""

    ink: str
    muted: str
    grid: str
    main: str
    accent: str


PAPER = Colours(ink="#1c2430", muted="#667085", grid="#e4e7ec", main="#0072b2", accent="#d55e00")
# Stand-ins that no one would choose; `themed_svg` turns each into a variable of the page's CSS.
THEMED = Colours(ink="#010a01", muted="#010a02", grid="#010a03", main="#010a04", accent="#010a05")
VARIABLES = {THEMED.ink: "ink", THEMED.muted: "muted", THEMED.grid: "grid", THEMED.main: "c1", THEMED.accent: "c2"}


class Curve(Figure):
    """A figure that a notebook shows without pyplot and its global state."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        width, height = self.get_size_inches()
        return buffer.getvalue(), {"width": int(width * 100), "height": int(height * 100)}


def curve(history: Sequence[Line], *, best_step: int | None = None) -> Figure:
    """Training loss and each validation metric over the steps, side by side.

    `history`: the lines of history.jsonl. `best_step`: the step to mark; none marks each metric's own best.
    """
    names = metric_names(history)
    count = 1 + len(names)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Curve(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    draw_loss(axes[0], history, PAPER)
    axes[0].set_title("training loss", loc="left", fontsize=10, color=PAPER.ink)
    for ax, name in zip(axes[1:], names, strict=False):
        draw_metric(ax, history, name, PAPER, best_step=best_step)
        ax.set_title(f"validation {spell_name(name)}", loc="left", fontsize=10, color=PAPER.ink)
    for ax in axes[count:]:
        ax.remove()
    return figure


def metric_names(history: Sequence[Line]) -> list[str]:
    """Metrics of the validation lines, in the order of their first appearance."""
    names: dict[str, None] = {}
    for line in history:
        if line["kind"] == "valid":
            names |= {
                k: None for k, v in line.items() if k not in ("kind", "step", "epoch", "at") and number(v) is not None
            }
    return list(names)


def points(history: Sequence[Line], kind: str, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of one curve, float64 [n]; what is not a finite number is left out."""
    found = [(float(line["step"]), number(line.get(name))) for line in history if line["kind"] == kind]
    kept = np.array([(s, v) for s, v in found if v is not None], dtype=np.float64).reshape(-1, 2)
    return kept[:, 0], kept[:, 1]


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential moving average over about a twentieth of the curve, without a start that drags."""
    weight = 2 / (max(len(values) / 20, 1) + 1)
    out, total, mass = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total = (1 - weight) * total + weight * value
        mass = (1 - weight) * mass + weight
        out[i] = total / mass
    return out


def thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most POINTS values: means of neighbours."""
    if len(values) <= POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, POINTS)])


def draw_loss(ax: Axes, history: Sequence[Line], colours: Colours) -> None:
    """Raw and smoothed training loss; a dotted line where an attempt took over."""
    _raw_and_smooth(ax, history, "loss", colours)
    _frame(ax, colours)


def draw_rate(ax: Axes, history: Sequence[Line], colours: Colours) -> None:
    """Examples per second, raw and smoothed."""
    _raw_and_smooth(ax, history, "examples_per_s", colours)
    ax.set_ylim(bottom=0)
    _frame(ax, colours)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))


def draw_rate_of_learning(ax: Axes, history: Sequence[Line], colours: Colours) -> None:
    """The learning rate."""
    steps, values = points(history, "train", "lr")
    ax.plot(thin(steps), thin(values), color=colours.main, linewidth=1.6)
    ax.set_ylim(bottom=0)
    _frame(ax, colours)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
    ax.yaxis.get_offset_text().set(color=colours.muted, fontsize=8)


def draw_metric(
    ax: Axes,
    history: Sequence[Line],
    name: str,
    colours: Colours,
    *,
    best_step: int | None = None,
    baseline: float | None = None,
) -> None:
    """One validation metric, its best step marked; the baseline as a dashed line where there is one."""
    steps, values = points(history, "valid", name)
    ax.plot(steps, values, color=colours.main, linewidth=1.6, marker="o", markersize=3 if len(steps) < 40 else 0)
    if baseline is not None:
        ax.axhline(baseline, color=colours.muted, linewidth=1, linestyle=(0, (4, 3)))
        end = ax.get_yaxis_transform()
        # At the end where the curve is further away.
        at_left = len(values) == 1 or (len(values) > 1 and abs(values[0] - baseline) > abs(values[-1] - baseline))
        ax.annotate(
            "baseline",
            (0.01 if at_left else 0.99, baseline),
            xycoords=end,
            xytext=(0, 3),
            textcoords="offset points",
            ha="left" if at_left else "right",
            fontsize=8.5,
            color=colours.muted,
        )
    marked = [i for i, s in enumerate(steps) if s == best_step]
    if best_step is None and len(values):
        best = 0
        for i, value in enumerate(values):
            best = i if is_better(name, value, values[best]) else best
        marked = [best]
    ax.margins(y=0.2)
    if len(steps) == 1:
        ax.set_xlim(0, steps[0] * 1.1)
    # A window of at least 1 % of the value: noise must not fill the picture and look like a trend.
    low, high = ax.get_ylim()
    if len(values) and high - low < 0.01 * abs(values[-1]):
        middle, half = (low + high) / 2, 0.005 * abs(values[-1])
        ax.set_ylim(middle - half, middle + half)
    ax.ticklabel_format(axis="y", useOffset=False)
    for i in marked[-1:]:
        ax.plot(steps[i], values[i], "o", color=colours.accent, markersize=6.5, zorder=5)
        # Away from the curve: above a high point, below a low one.
        above = values[i] >= (values.min() + values.max()) / 2
        right = steps[i] >= (steps[0] + steps[-1]) / 2
        ax.annotate(
            spell_metric(values[i]),
            (steps[i], values[i]),
            xytext=(5 if right else -5, 6 if above else -6),
            textcoords="offset points",
            ha="right" if right else "left",
            va="bottom" if above else "top",
            fontsize=9.5,
            fontweight="bold",
            color=colours.ink,
        )
    _frame(ax, colours)


def _raw_and_smooth(ax: Axes, history: Sequence[Line], name: str, colours: Colours) -> None:
    steps, values = points(history, "train", name)
    few = len(steps) < 5
    raw_steps, raw = thin(steps), thin(values)
    ax.plot(raw_steps, raw, color=colours.main, alpha=0.35, linewidth=0.9, marker="o" if few else "", markersize=3)
    ax.plot(raw_steps, thin(smooth(values)), color=colours.main, linewidth=1.9)
    for line in history:
        if line["kind"] == "start" and line["step"] > 0:
            ax.axvline(line["step"], color=colours.accent, linewidth=1, linestyle=(0, (1, 2)))


def _frame(ax: Axes, colours: Colours) -> None:
    ax.grid(axis="y", color=colours.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours.grid)
    ax.tick_params(colors=colours.muted, labelsize=9, length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("step", fontsize=9, color=colours.muted, loc="right")


def themed_svg(name: str, label: str, draw: Any) -> str:
    """`draw(ax, colours)` as an inline SVG that takes its colours and font from the page."""
    figure = Figure(figsize=(4.6, 2.75), layout="constrained")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw(figure.subplots(), THEMED)
        figure.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # A style for all elements would reach out of the figure into the page; report.css has it.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    # The width is the page's to choose; namespaces mean nothing inside HTML.
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None
    body = body[body.index(">") + 1 :]
    # One document holds several of them, so every id gets the figure's name in front.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:)?href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    body = re.sub(r"font: ((?:\d+ |bold |normal )*)([\d.]+px) [^;\"]*", _font, body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{body.strip()}'


def _font(match: re.Match[str]) -> str:
    weight = match[1].strip()
    return f"font-size: {match[2]}" + (f"; font-weight: {weight}" if weight else "")
