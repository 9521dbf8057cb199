"""Puts the page together and writes it."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from rtrain.errors import one_line
from rtrain.report import panels, sections, timeline
from rtrain.report.facts import Facts, Missing, read_facts
from rtrain.report.origin import origin
from rtrain.report.words import spell_time
from rtrain.storage import Folder
from rtrain.tracking import mask_text
from rtrain.version import VERSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"


def write_report(folder: str) -> str:
    """Write report.html of a run's folder (any fsspec URI) beside its files; returns its path.

    A run that goes on, failed, or lost a file gets a page that says so.

    Raises:
        UserError: there is no run in the folder.
    """
    facts = read_facts(folder)
    target = Folder(folder)
    target.write(REPORT, render(facts).encode())
    return f"{target.uri}/{REPORT}"


def curve(history: Sequence[Mapping[str, Any]], *, best_step: int | None = None) -> "Figure":
    """Training loss and each validation metric over the steps, as a figure that a notebook shows.

    `history`: the lines of history.jsonl. Each metric's own best has a dot; `best_step`, the chosen one, a ring.
    """
    from rtrain.report.figures import curve as draw

    return draw(history, best_step=best_step)


def render(facts: Facts) -> str:
    """The whole page as HTML."""
    shown = {
        "headline": sections.headline(facts),
        "curves": _section(panels.curves, facts),
        "metrics": _section(sections.metrics, facts),
        "scores": _section(panels.scores, facts),
        "placement": _section(sections.placement, facts),
        "step_time": _section(timeline.step_time, facts),
        "memory": _section(sections.memory, facts),
        "events": _section(sections.events, facts),
        "origin": _section(origin, facts),
        "surroundings": _section(sections.surroundings, facts),
        "repeat": _section(sections.repeat, facts),
        "config": _section(sections.config, facts),
    }
    return fill("report.html.j2", name=facts.name, folder=mask_text(facts.folder.uri), **shown)


def fill(template: str, **shown: Any) -> str:
    """A page of this room as HTML, with the style, the script, the version and the time that all of them have."""
    html: str = (
        _environment()
        .get_template(template)
        .render(
            version=VERSION,
            written=spell_time(time.time()),
            css=_file("report.css"),
            script=_file("report.js"),
            **shown,
        )
    )
    return html


def _section(build: Callable[[Facts], Mapping[str, Any]], facts: Facts) -> Mapping[str, Any]:
    """A section; one whose facts are missing or of another shape says so instead of taking the page down."""
    try:
        return build(facts)
    except Missing as missing:
        return {"missing": str(missing)}
    except KeyError as error:
        return {"missing": f"The run's files have no field {error} to show here."}
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        return {"missing": f"The run's files cannot be shown here ({one_line(error)})."}


def _file(name: str) -> str:
    return (files("rtrain.report") / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
