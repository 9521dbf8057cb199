"""The options of a recipe's `tune`, over those that the recipe gives."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rtrain.errors import ConfigError

if TYPE_CHECKING:
    from rtrain.run import Run
    from rtrain.tuning import Domain, Search, Tuned
    from rtrain.tuning.options import Scheduler

SAMPLERS = ("tpe", "gp", "random", "grid")
SCHEDULERS = ("none", "asha", "median", "pbt")
SEARCH_OPTIONS = (
    "trials", "sampler", "scheduler", "grace", "perturb", "objectives", "concurrent", "hours", "cost", "price", "warm",
)  # fmt: skip


@dataclass(frozen=True)
class Searched:
    """What a recipe says of its search."""

    space: "Mapping[str, Domain]"
    search: "Search | None"


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Of `tune`."""
    add = parser.add_argument
    add("--trials", type=int, metavar="N", help="tune: at most so many (default: 8)")
    add("--sampler", choices=SAMPLERS, help="tune: what proposes values (default: tpe)")
    add("--scheduler", choices=SCHEDULERS, help="tune: what stops trials early (default: none)")
    add("--grace", type=int, metavar="STEPS", help="tune --scheduler asha, median: steps that every trial gets")
    add("--perturb", type=int, metavar="STEPS", help="tune --scheduler pbt: steps between two turns")
    add("--objectives", metavar="NAME,NAME", help="tune: metrics to weigh, also parameters, seconds, cost, latency_ms")
    add("--concurrent", type=int, metavar="N", help="tune: trials at a time (default: as many as the cluster holds)")
    add("--hours", type=float, metavar="H", help="tune: of the search, over all its starts")
    add("--cost", type=float, metavar="SUM", help="tune: what the search may cost, at --price, of a worker for an hour")
    add("--warm", metavar="FOLDER", help="tune: an earlier search, whose trials the sampler learns from")


def run_search(run: "Run", searched: Searched, options: argparse.Namespace, *, command: str) -> "Tuned":
    """`tune` as the options have it.

    Raises:
        ConfigError: options that do not go together.
    """
    from rtrain.tuning import Search, tune

    given = vars(options)
    search = searched.search or Search()
    changed: dict[str, Any] = {
        k: given[k] for k in ("trials", "sampler", "concurrent", "hours", "cost", "price") if k in given
    }
    if "objectives" in given:
        changed["objectives"] = tuple(given["objectives"].split(","))
    search = replace(search, **changed, scheduler=_scheduler(search.scheduler, given))
    return tune(
        run, searched.space, search=search, command=command, fresh=given.get("fresh", False), warm=given.get("warm", "")
    )


def without(words: Sequence[str], key: str) -> list[str]:
    """The words of a command line that set fields, without those that set `key`."""
    kept, skips = list[str](), False
    for word in words:
        if word.startswith("--"):
            skips = word == f"--{key}"
            if word.startswith(f"--{key}="):
                continue
        if not skips:
            kept.append(word)
    return kept


def _scheduler(own: "Scheduler | None", given: Mapping[str, object]) -> "Scheduler | None":
    """The scheduler that the options name, or the recipe's `own`, with the steps that were given."""
    from rtrain.tuning import Asha, Median, Population

    grace, perturb = given.get("grace"), given.get("perturb")
    assert isinstance(grace, int | None) and isinstance(perturb, int | None)
    name = given.get("scheduler")
    kind = {"none": None, "asha": Asha, "median": Median, "pbt": Population}[str(name)] if name else type(own)
    if grace is not None and kind not in (Asha, Median):
        raise ConfigError(f"--grace: {grace} steps mean something to --scheduler asha and median alone")
    if perturb is not None and kind is not Population:
        raise ConfigError(f"--perturb: {perturb} steps mean something to --scheduler pbt alone")
    if kind in (Asha, Median):
        base = own if isinstance(own, kind) else kind()
        return replace(base, grace=grace) if grace is not None else base
    if kind is Population:
        if perturb is not None:
            return replace(own, every=perturb) if isinstance(own, Population) else Population(every=perturb)
        if not isinstance(own, Population):
            raise ConfigError("--scheduler pbt: needs --perturb, the steps between two turns of the population")
        return own
    return None
