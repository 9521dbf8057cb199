"""The curves of a run, drawn by matplotlib: as SVG that follows the page's theme, and as a picture for notebooks."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rtrain.report.words import is_better, number, spell_count, spell_metric, spell_name
from rtrain.rounding import ceil_div

POINTS = 1500
"""Points of a curve beyond which neighbours are averaged."""
HOVERED = 200
"""Points of a curve that tell their values to a reader who points at them."""
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
SERIES = (THEMED.main, THEMED.accent, "#010a06", "#010a07", "#010a08", "#010a09", "#010a10")
"""Of several runs in one picture."""
VARIABLES = {THEMED.ink: "ink", THEMED.muted: "muted", THEMED.grid: "grid"}
VARIABLES |= {colour: f"c{i + 1}" for i, colour in enumerate(SERIES)}


class Curve(Figure):
    """A figure that a notebook shows without pyplot and its global state."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        width, height = self.get_size_inches()
        return buffer.getvalue(), {"width": int(width * 100), "height": int(height * 100)}


def curve(history: Sequence[Line], *, best_step: int | None = None) -> Figure:
    """Training loss and each validation metric over the steps, side by side.

    `history`: the lines of history.jsonl. Each metric's own best has a dot; `best_step`, the chosen one, a ring.
    """
    names = metric_names(history)
    count = 1 + len(names)
    columns = min(3, count)
    rows = ceil_div(count, columns)
    figure = Curve(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    draw_loss(axes[0], history, PAPER)
    axes[0].set_title("training loss", loc="left", fontsize=10, color=PAPER.ink)
    for ax, name in zip(axes[1:], names, strict=False):
        draw_metric(ax, history, name, PAPER, chosen=best_step)
        steps, values = points(history, "valid", name)
        best = best_at(name, values)
        title = f"validation {spell_name(name)}: best {spell_metric(values[best])} at step {spell_count(steps[best])}"
        ax.set_title(title, loc="left", fontsize=10, color=PAPER.ink)
    for ax in axes[count:]:
        ax.remove()
    return figure


def metric_names(history: Sequence[Line]) -> list[str]:
    """Metrics of the validation lines, in the order of their first appearance."""
    names: dict[str, None] = {}
    for line in history:
        if line["kind"] == "valid":
            names |= {k: None for k, v in line.items() if k not in NOT_METRICS and number(v) is not None}
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


def best_at(name: str, values: NDArray[np.float64]) -> int:
    """Index of the metric's own best value, the first of equals."""
    best = 0
    for i, value in enumerate(values):
        best = i if is_better(name, value, values[best]) else best
    return best


def draw_loss(ax: Axes, history: Sequence[Line], colours: Colours, *, valid: str = "") -> None:
    """Raw and smoothed training loss, and `valid`, the validation metric that is the same loss, over it."""
    _raw_and_smooth(ax, history, "loss", colours, "training")
    steps, values = points(history, "valid", valid)
    if len(steps):
        ax.plot(steps, values, color=colours.accent, linewidth=1.6, label="validation", **_dots(steps))
    _frame(ax, colours)


def draw_rate(ax: Axes, history: Sequence[Line], colours: Colours) -> None:
    """Examples per second, raw and smoothed."""
    _raw_and_smooth(ax, history, "examples_per_s", colours, "examples/s")
    ax.set_ylim(bottom=0)
    _frame(ax, colours)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))


def draw_norm(ax: Axes, history: Sequence[Line], colours: Colours) -> None:
    """The gradient's norm, raw and smoothed."""
    _raw_and_smooth(ax, history, "grad_norm", colours, "norm")
    ax.set_ylim(bottom=0)
    _frame(ax, colours)


def draw_rate_of_learning(ax: Axes, history: Sequence[Line], colours: Colours) -> None:
    """The learning rate."""
    steps, values = points(history, "train", "lr")
    ax.plot(thin(steps), thin(values), color=colours.main, linewidth=1.6, label="learning rate")
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
    chosen: int | None = None,
    baseline: float | None = None,
) -> None:
    """One validation metric: a dot at its own best, a ring at the `chosen` step, the baseline as a dashed line.

    Words stand in the caption: inside the picture they would lie on a line sooner or later.
    """
    steps, values = points(history, "valid", name)
    ax.plot(steps, values, color=colours.main, linewidth=1.6, label=spell_name(name), **_dots(steps))
    if baseline is not None:
        ax.axhline(baseline, color=colours.muted, linewidth=1, linestyle=(0, (4, 3)))
    ax.margins(y=0.1)
    if len(steps) == 1:
        ax.set_xlim(0, steps[0] * 1.1)
    _widen(ax, values)
    ax.ticklabel_format(axis="y", useOffset=False)
    if len(values):
        best = best_at(name, values)
        ax.plot(steps[best], values[best], "o", color=colours.accent, markersize=6.5, zorder=5)
        for i in np.flatnonzero(steps == chosen):
            ax.plot(
                steps[i], values[i], "o", markersize=10, markerfacecolor="none",
                markeredgecolor=colours.ink, markeredgewidth=1.2, zorder=4,
            )  # fmt: skip
    _frame(ax, colours)


def draw_over(
    ax: Axes, histories: Sequence[Sequence[Line]], kind: str, name: str, lines: Sequence[str], colours: Colours
) -> None:
    """One curve of several runs, over each other; `lines`: what each is called. Training curves are smoothed.

    Each is thinner than the one under it, so that equal ones are seen to be there.
    """
    drawn = []
    for i, (history, called) in enumerate(zip(histories, lines, strict=True)):
        steps, values = points(history, kind, name)
        drawn += values.tolist()
        width = 3.2 / (i + 1) ** 0.7 + 0.3
        colour, style = SERIES[i % len(SERIES)], ("-", "--", ":")[i // len(SERIES) % 3]
        if kind == "train":
            ax.plot(thin(steps), thin(smooth(values)), style, color=colour, linewidth=width, label=called)
        else:
            ax.plot(steps, values, style, color=colour, linewidth=width, label=called, **_dots(steps))
    _widen(ax, np.array(drawn))
    _frame(ax, colours)


def draw_roc(ax: Axes, curve: Mapping[str, Sequence[float]], colours: Colours) -> None:
    """True over false positive rate; the diagonal is what guessing gives."""
    ax.plot([0, 1], [0, 1], color=colours.muted, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot(curve["false"], curve["true"], color=colours.main, linewidth=1.9, label="true positive rate")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    _frame(ax, colours, x="false positive rate")


def draw_calibration(ax: Axes, groups: Mapping[str, Sequence[float]], colours: Colours) -> None:
    """Share of positives over the mean prediction, of groups of equally many rows; right on the diagonal."""
    both = [*groups["predicted"], *groups["observed"]]
    ends = [min(both), max(both)]
    ax.plot(ends, ends, color=colours.muted, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot(
        groups["predicted"], groups["observed"], color=colours.main, linewidth=1.4, marker="o", markersize=3.5,
        label="share of positives",
    )  # fmt: skip
    _frame(ax, colours, x="mean prediction")


def draw_scores(ax: Axes, bars: Mapping[str, Sequence[float]], colours: Colours) -> None:
    """How often each class gets which score: shares of its rows, over the odds, told as probabilities."""
    edges = np.array(bars["edges"])
    middles = (edges[:-1] + edges[1:]) / 2
    for name, colour, called in (("without", colours.main, "label 0"), ("with", colours.accent, "label 1")):
        rows = np.array(bars[name])
        share = rows / max(rows.sum(), 1.0)
        ax.stairs(share, edges, color=colour, fill=True, alpha=0.16)
        ax.plot(middles, share, color=colour, linewidth=1.6, drawstyle="steps-mid", label=called)
    ax.set_ylim(bottom=0)
    _frame(ax, colours, x="predicted probability")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _probability(x)))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
    ax.fmt_xdata = _probability
    ax.fmt_ydata = lambda y: f"{100 * y:.1f} % of its rows"


def _probability(logit: float) -> str:
    return f"{1 / (1 + math.exp(-logit)):.2g}"


def _dots(steps: NDArray[np.float64]) -> dict[str, Any]:
    """Few points are marked one by one."""
    return {"marker": "o", "markersize": 3 if len(steps) < 40 else 0}


def _widen(ax: Axes, values: NDArray[np.float64]) -> None:
    """A window of at least 1 % of the value: noise must not fill the picture and look like a trend."""
    low, high = ax.get_ylim()
    if len(values) and high - low < 0.01 * abs(values[-1]):
        middle, half = (low + high) / 2, 0.005 * abs(values[-1])
        ax.set_ylim(middle - half, middle + half)


def _raw_and_smooth(ax: Axes, history: Sequence[Line], name: str, colours: Colours, called: str) -> None:
    steps, values = points(history, "train", name)
    few = len(steps) < 5
    raw_steps, raw = thin(steps), thin(values)
    ax.plot(raw_steps, raw, color=colours.main, alpha=0.35, linewidth=0.9, marker="o" if few else "", markersize=3)
    ax.plot(raw_steps, thin(smooth(values)), color=colours.main, linewidth=1.9, label=called)
    for line in history:
        if line["kind"] == "start" and line["step"] > 0:
            ax.axvline(line["step"], color=colours.accent, linewidth=1, linestyle=(0, (1, 2)))


def bare(ax: Axes, colours: Colours) -> None:
    """The frame that all pictures have: a line below, and those of the grid."""
    ax.grid(axis="y", color=colours.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours.grid)
    ax.tick_params(colors=colours.muted, labelsize=9, length=0)


def _frame(ax: Axes, colours: Colours, *, x: str = "step") -> None:
    bare(ax, colours)
    ax.tick_params(axis="x", pad=7)  # the first label of each axis must not meet in the corner
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=x == "step"))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if x == "step":
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    # What a reader who points at a curve is told.
    ax.fmt_xdata = (lambda at: f"{at:,.0f}") if x == "step" else (lambda at: f"{at:.3g}")
    ax.fmt_ydata = lambda value: f"{value:,.4g}" if abs(value) < 10 else f"{value:,.0f}"
    ax.set_xlabel(x, fontsize=9, color=colours.muted, loc="right")


def themed_svg(name: str, label: str, draw: Any) -> str:
    """`draw(ax, colours)` as an inline SVG that takes its colours and font from the page."""
    figure = Figure(figsize=(4.6, 2.75), layout="constrained")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        ax = figure.subplots()
        draw(ax, THEMED)
        figure.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name, label, escape(json.dumps(_readings(ax), separators=(",", ":"))))


def _readings(ax: Axes) -> list[dict[str, Any]]:
    """What the page's script shows of the curve under the pointer: of each named line the points as x, y and words.

    x and y are the drawing's own: 72 to an inch, counted from the top left.
    """
    figure = ax.get_figure()
    assert figure is not None
    height = figure.bbox.height
    found = []
    for line in ax.lines:
        xy = np.asarray(line.get_xydata(), dtype=np.float64)
        if str(line.get_label()).startswith("_") or not len(xy):
            continue
        kept = xy[np.unique(np.linspace(0, len(xy) - 1, HOVERED).round().astype(int))]
        at = ax.transData.transform(kept)
        at = np.column_stack([at[:, 0], height - at[:, 1]]) * (72 / figure.dpi)
        words = [[ax.format_xdata(x), ax.format_ydata(y)] for x, y in kept]
        shown = [[round(float(x), 1), round(float(y), 1), *said] for (x, y), said in zip(at, words, strict=True)]
        found.append({"name": str(line.get_label()), "x": ax.get_xlabel(), "points": shown})
    return found


def _inline(svg: str, name: str, label: str, readings: str) -> str:
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
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{label}" data-readings="{readings}">{body.strip()}'


def _font(match: re.Match[str]) -> str:
    weight = match[1].strip()
    return f"font-size: {match[2]}" + (f"; font-weight: {weight}" if weight else "")
