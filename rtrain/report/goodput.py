"""Goodput over the checkpoint interval, as a picture."""

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rtrain.errors import ConfigError
from rtrain.goodput import Study
from rtrain.report.figures import PAPER, Curve

TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 2 * 86400, 7 * 86400)
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def spell_s(seconds: float) -> str:
    """Three digits in the largest unit that is not above it: 90 s is 1.5 min."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def draw_study(study: Study) -> Figure:
    """Closed form, and median and spread (10 to 90 %) of the seeds, over the interval; the best is marked.

    Raises:
        ConfigError: nothing was found to draw, as no work is ever lost.
    """
    if study.best is None:
        raise ConfigError("--picture: no work is ever lost here, so no interval is best. Give a finite --mtbf-hours")
    every = [point.every_s for point in study.points]
    scenario, best, colours = study.scenario, study.best, PAPER
    figure = Curve(figsize=(7.2, 4.3), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(
        every, [p.low for p in study.points], [p.high for p in study.points], color=colours.main, alpha=0.16,
        linewidth=0, label=f"10 to 90 % of {study.seeds} seeds",
    )  # fmt: skip
    ax.plot(every, [p.median for p in study.points], color=colours.main, linewidth=1.9, label="simulated, median")
    ax.plot(
        every, [p.closed_form for p in study.points], color=colours.ink, linewidth=1.2, linestyle=(0, (4, 3)),
        label="closed form (Daly)",
    )  # fmt: skip
    ax.plot(
        best.every_s, best.median, "o", color=colours.accent, markersize=7.5, zorder=5,
        label=f"best: every {spell_s(best.every_s)}",
    )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(every[0], every[-1])
    ax.xaxis.set_major_locator(FixedLocator(TICKS_S))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: spell_s(x)))
    ax.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    ax.grid(axis="y", color=colours.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours.grid)
    ax.tick_params(colors=colours.muted, labelsize=9, length=0, pad=6)
    ax.set_xlabel("training between two checkpoints", fontsize=9, color=colours.muted, loc="right")
    kind = "elastic" if scenario.elastic else "fixed"
    ax.set_title(
        f"goodput of {scenario.nodes:,} nodes over {scenario.days:g} days, {kind}, {scenario.spares} spares; an "
        f"interruption every {spell_s(study.interruption_s)}",
        loc="left", fontsize=10, color=colours.ink, pad=12,
    )  # fmt: skip
    ax.legend(frameon=False, fontsize=9, labelcolor=colours.ink, loc="lower center")
    return figure
