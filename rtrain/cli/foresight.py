"""`plan --hardware`: how long a step takes and what a run costs, at its own layout, at others, at other sizes."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from rtrain.errors import ConfigError

if TYPE_CHECKING:
    from rtrain.outlook.outlook import Outlook
    from rtrain.outlook.profile import Profile
    from rtrain.planning import Plan
    from rtrain.run import Run

OPTIONS = (
    "hardware", "price", "devices_per_node", "search", "devices", "scale", "scaling", "mtbf_hours", "restart_s",
    "write_gb_s", "rows", "read_rows_s", "picture",
)  # fmt: skip
FAILING = ("mtbf_hours", "restart_s", "write_gb_s")
ALONE = ("hardware", "picture")
"""Those that mean something by themselves."""
SCALE = re.compile(r"(\d+)\.\.(\d+)")


class Answer(Protocol):
    """What is printed, as text or as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""


@dataclass(frozen=True)
class Foreseen:
    """A run's layout, and what it will take."""

    plan: "Plan"
    outlook: "Outlook"

    def to_json(self) -> dict[str, Any]:
        """The plan's, with the outlook's beside it."""
        return self.plan.to_json() | {"outlook": self.outlook.to_json()}

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.outlook}"


def add_options(add: Callable[..., Any]) -> None:
    """To the parser of a recipe's command line."""
    add("--hardware", metavar="NAME|FILE", help="plan: how long a step takes on such devices (h100, ..., a .json)")
    add("--price", type=float, metavar="N", help="of a device for an hour: plan --hardware; of a worker: tune")
    add("--devices-per-node", type=int, metavar="N", help="plan --hardware: otherwise than the profile says")
    add("--mtbf-hours", type=float, metavar="H", help="plan --hardware: of ONE node; goodput, best checkpoint interval")
    add("--restart-s", type=float, metavar="S", help="plan --mtbf-hours: from a failure on (default: 180)")
    add("--write-gb-s", type=float, metavar="N", help="plan --mtbf-hours: a node to the storage (default: 1)")
    add("--rows", type=int, metavar="N", help="plan --hardware: of the training split, where the duration is in epochs")
    add("--read-rows-s", type=float, metavar="N", help="plan --hardware: rows that one rank reads in a second")
    add("--search", action="store_true", help="plan --hardware: all legal layouts, the fastest first")
    add("--devices", type=int, metavar="N", help="plan --search: for so many (default: cluster.workers)")
    add("--scale", metavar="A..B", help="plan --hardware: time and cost from A to B devices, doubled")
    add("--picture", metavar="FILE.png", help="plan: draw memory a rank, a step's parts; --scale: efficiency")
    add("--scaling", choices=("weak", "strong"), help="plan --scale: rows a device (default), or global_batch, stay")


def asked(options: argparse.Namespace) -> bool:
    """Whether hardware was named.

    Raises:
        ConfigError: an option that means nothing without another, or beside it.
    """
    given = [name for name in OPTIONS if hasattr(options, name)]
    if "picture" in given and "search" in given:
        raise ConfigError("--picture: a search is a list. Draw the layout that you take, by plan without --search")
    needs = {"devices": "search", "scaling": "scale", "restart_s": "mtbf_hours", "write_gb_s": "mtbf_hours"}
    for name in given:
        needed = needs.get(name, "hardware")
        if needed not in given and name not in ALONE:
            example = {"search": "", "scale": " 8..64", "hardware": " h100", "mtbf_hours": " 20000"}[needed]
            spelled, needed = name.replace("_", "-"), needed.replace("_", "-")
            raise ConfigError(f"--{spelled}: means nothing without --{needed}. Add --{needed}{example}")
    if "search" in given and "scale" in given:
        raise ConfigError("--search and --scale: each is an answer of its own. Ask for one of them")
    of_one = [name for name in ("mtbf_hours", "read_rows_s") if name in given]
    if of_one and ("search" in given or "scale" in given):
        spelled = of_one[0].replace("_", "-")
        raise ConfigError(f"--{spelled}: tells of one layout alone. Ask for it without --search and --scale")
    return "hardware" in given


def draw(found: "Answer | Plan", path: str) -> None:
    """Write the picture of an answer.

    Raises:
        ConfigError: a path that is none of a PNG, or cannot be written.
    """
    from rtrain.outlook.scale import Scaled
    from rtrain.report.foresight import draw_plan, draw_scale
    from rtrain.report.pictures import write_picture

    if isinstance(found, Scaled):
        figure = draw_scale(found)
    elif isinstance(found, Foreseen):
        figure = draw_plan(found.plan, found.outlook.parts)
    else:
        figure = draw_plan(cast("Plan", found))
    write_picture(figure, path)


def found(run: "Run", options: argparse.Namespace) -> Answer:
    """The answer to what was asked.

    Raises:
        ConfigError: an option's value that cannot be; what `outlook`, `search` and `scale` refuse.
    """
    from rtrain.outlook.failures import Failing
    from rtrain.outlook.outlook import on_hardware, outlook
    from rtrain.planning import plan

    profile = _profile(options)
    price = getattr(options, "price", None)
    if price is not None and not price > 0:
        raise ConfigError(f"--price: must be above 0, got {price:g}")
    rows, read_rows_s = getattr(options, "rows", None), getattr(options, "read_rows_s", None)
    for name, value in (("rows", rows), ("read-rows-s", read_rows_s)):
        if value is not None and not value > 0:
            raise ConfigError(f"--{name}: must be above 0, got {value:g}")
    placed = on_hardware(run, profile)
    if hasattr(options, "search"):
        from rtrain.outlook.search import search

        devices = getattr(options, "devices", run.cluster.workers)
        if devices < 1:
            raise ConfigError(f"--devices: must be at least 1, got {devices}")
        return search(placed, profile, devices=devices, price=price, rows=rows)
    if hasattr(options, "scale"):
        from rtrain.outlook.scale import Scaling, scale

        scaling: Scaling = getattr(options, "scaling", "weak")
        return scale(placed, profile, devices=_doubled(options.scale), scaling=scaling, price=price, rows=rows)
    planned = plan(placed)
    failing = {name: getattr(options, name) for name in FAILING if hasattr(options, name)}
    how = Failing(**failing) if failing else None
    told = outlook(placed, profile, price=price, plan=planned, failing=how, rows=rows, read_rows_s=read_rows_s)
    return Foreseen(planned, told)


def _doubled(asked: str) -> list[int]:
    """`8..64` -> 8, 16, 32, 64."""
    ends = SCALE.fullmatch(asked)
    if ends is None or not 0 < int(ends[1]) <= int(ends[2]):
        raise ConfigError(f"--scale: must be two numbers of devices, as 8..64, the smaller first, got {asked!r}")
    found = [int(ends[1])]
    while found[-1] * 2 <= int(ends[2]):
        found.append(found[-1] * 2)
    return found


def _profile(options: argparse.Namespace) -> "Profile":
    from rtrain.outlook.profile import profile

    chosen = profile(options.hardware)
    per_node = getattr(options, "devices_per_node", chosen.devices_per_node)
    if per_node < 1:
        raise ConfigError(f"--devices-per-node: must be at least 1, got {per_node}")
    return replace(chosen, devices_per_node=per_node)
