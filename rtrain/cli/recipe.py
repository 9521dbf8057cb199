"""The verbs of a recipe: `python RECIPE [VERB] [options] [--key value ...]`."""

import argparse
import json
import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtrain.cli import foresight
from rtrain.cli.answer import guarded, refuse, stdout_kept, told_to_stop
from rtrain.cli.decoding import DECODING, decoding_said
from rtrain.cli.scale import SCALE, scale_said
from rtrain.cli.search import SEARCH_OPTIONS, Searched, add_search_options, run_search, without
from rtrain.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rtrain.run import Run
    from rtrain.serving.app import Served
    from rtrain.stages.config import TwoStages
    from rtrain.tuning import Domain, Search

VERBS = {
    "train": "train to the end (resumes by name), test, export, report; the default",
    "plan": "show ranks, table placement and bytes per rank; starts nothing",
    "parity": "train some steps at this layout and in one process (CPU), and compare; --layouts all: every one",
    "chaos": "cause failures on purpose, each beside an undisturbed twin, and show what each cost",
    "tune": "search the recipe's space on Ray Tune, each trial a distributed run; goes on by name",
    "serve": "serve the finished run's export until Ctrl-C",
    "config": "print the resolved config",
}
RECIPE_VERBS = ("train", "plan", "parity", "chaos", "tune", "config")
"""Those that `rtrain VERB RECIPE` has too; its `serve` takes a run's folder."""
LAUNCHERS = ("ray", "inline", "torchrun")
SERVED = tuple(one.names[0].removeprefix("--") for one in (*SCALE, *DECODING))
"""Options of `serve` that say how it answers."""
DEFAULTS = {
    "launcher": "ray", "fresh": False, "failures": "all", "draw": 0, "layouts": "own", "ranks": 4, "grpc_port": None,
    "replace": False, **dict.fromkeys(SERVED),
}  # fmt: skip
TAKEN_BY = {
    "fresh": ("train", "tune"), "launcher": ("train", "chaos"), "failures": ("chaos",), "draw": ("chaos",),
    **dict.fromkeys((*SERVED, "grpc_port", "replace"), ("serve",)),
    **dict.fromkeys(("layouts", "ranks"), ("parity",)),
    **dict.fromkeys(SEARCH_OPTIONS, ("tune",)),
    **dict.fromkeys(foresight.OPTIONS, ("plan",)), "price": ("plan", "tune"),
}  # fmt: skip
"""Option -> the verbs that it means something to; given to another one it is refused, not ignored."""


def main(
    run: "Callable[[], Run]",
    debug: "Callable[[], Run] | None" = None,
    *,
    space: "Mapping[str, Domain] | None" = None,
    search: "Search | None" = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """A recipe's command line; ends the process with the exit code.

    `run` and `debug` give the full and the small config, `space` the fields that `tune` searches, `search` how.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    recipe = _shown(sys.argv[0])
    sys.exit(
        guarded(lambda: _recipe(run, debug, Searched(space or {}, search), given, recipe), as_json="--json" in given)
    )


def _recipe(
    run: "Callable[[], Run]",
    debug: "Callable[[], Run] | None",
    searched: Searched,
    given: list[str],
    recipe: str,
) -> int:
    parser = _parser(recipe)
    options, words = parser.parse_known_args(given)
    verb = words.pop(0) if words and not words[0].startswith("-") else "train"
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS) or '. Verbs: ' + ', '.join(VERBS)}")
    for name, verbs in TAKEN_BY.items():
        if name in options and verb not in verbs:
            raise ConfigError(f"--{name}: {verb} does not take it; it is of {' and '.join(verbs)}")
    options = argparse.Namespace(**DEFAULTS | vars(options))
    if options.debug and debug is None:
        raise ConfigError("--debug: this recipe has no debug()")
    from rtrain import config
    from rtrain.cli import fields

    try:
        chosen = (debug if options.debug and debug else run)()
    except TypeError as error:
        config.explain(error)
        raise

    if options.help:
        print(parser.format_help())
        print(fields.help_text(chosen))
        return 0
    config.validate(chosen)
    chosen = config.override(chosen, fields.changes(words, chosen))
    return RUN[verb](_Call(chosen, options, given, recipe, searched, words))


@dataclass(frozen=True)
class _Call:
    """What a verb is called with."""

    run: "Run"
    options: argparse.Namespace
    given: list[str]
    """The words behind the recipe's name."""
    recipe: str
    searched: Searched
    words: list[str]
    """Those that set fields."""


def _train(call: _Call) -> int:
    from rtrain.api import train

    options, command = call.options, shlex.join(["python", call.recipe, *call.given])
    with stdout_kept():
        result = train(call.run, launcher=options.launcher, fresh=options.fresh, command=command)
    if result is not None:
        print(json.dumps(dict(result.values)) if options.json else _summary(result.values), flush=True)
    return 0


def _plan(call: _Call) -> int:
    from rtrain.planning import plan
    from rtrain.report.pictures import check_picture

    path = getattr(call.options, "picture", "")
    if path:
        check_picture(path)
    found = foresight.found(call.run, call.options) if foresight.asked(call.options) else plan(call.run)
    if path:
        foresight.draw(found, path)
    print(json.dumps(found.to_json()) if call.options.json else found)
    return 0


def _config(call: _Call) -> int:
    from rtrain import config

    as_json = call.options.json
    print(json.dumps(config.to_dict(call.run)) if as_json else golden(call.run), end="\n" if as_json else "")
    return 0


def _tune(call: _Call) -> int:
    words = without(call.words, "name")  # that of the search's folder
    base = shlex.join(["python", call.recipe, "train", *(["--debug"] if call.options.debug else []), *words])
    with stdout_kept():
        tuned = run_search(call.run, call.searched, call.options, command=base)
    print(json.dumps(tuned.to_json()) if call.options.json else tuned)
    return 0


def _serve(call: _Call) -> int:
    serve(call.run.folder, call.options, call.run.handoff.port)
    return 0


def _parity(call: _Call) -> int:
    """Exit code 1 when a layout differs from one process."""
    from rtrain.parity import all_layouts, parity

    layouts = tuple(all_layouts(call.run, call.options.ranks)) if call.options.layouts == "all" else None
    found = parity(call.run, layouts=layouts, say=lambda text: print(f"parity: {text}", file=sys.stderr, flush=True))
    print(json.dumps(found.to_json()) if call.options.json else found)
    return 0 if found.holds else 1


def _chaos(call: _Call) -> int:
    """Exit code 1 when a failure left a trace."""
    from rtrain.rehearsal.chaos import KINDS, chaos

    options = call.options
    kinds = options.failures.split(",") if options.failures != "all" else list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"--failures: unknown {kind!r}{did_you_mean(kind, KINDS) or '. Known: ' + ', '.join(KINDS)}"
            )

    def say(text: str) -> None:
        print(f"chaos: {text}", file=sys.stderr, flush=True)

    with stdout_kept():
        found = chaos(call.run, kinds=kinds, seed=options.draw, launcher=options.launcher, say=say)
    print(json.dumps(found.to_json()) if options.json else found)
    return 0 if found.holds else 1


RUN: dict[str, Callable[[_Call], int]] = {
    "train": _train, "plan": _plan, "parity": _parity, "chaos": _chaos, "tune": _tune, "serve": _serve,
    "config": _config,
}  # fmt: skip
"""Verb -> what it does; gives the exit code."""


def golden(run: "Run") -> str:
    """The flattened config as text, one key a line; recipes keep theirs as golden files."""
    from rtrain import config

    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.flatten(run).items())


def _parser(recipe: str) -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<8} {what}" for name, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=f"python {recipe}",
        usage=f"python {recipe} [VERB] [options] [--key value ...]",
        description=f"verbs:\n{verbs}\n\nAny field of the config is set by its dotted key, as --key VALUE or "
        "--key=VALUE: --optim.lr 3e-4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that what was given can be told from what was not
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", default=False, help="show this and every field of the config")
    add("--json", action="store_true", default=False, help="one line of JSON on stdout")
    add("--debug", action="store_true", default=False, help="the recipe's small config: the same path in seconds")
    add("--fresh", action="store_true", help="train, tune: start anew; what the name held is moved aside")
    where = "train: on Ray (default), in this process, or as one of torchrun's ranks"
    add("--launcher", choices=LAUNCHERS, help=where)
    add("--failures", metavar="KIND,KIND", help="chaos: which, separated by commas (default: all)")
    add("--draw", type=int, metavar="SEED", help="chaos: draws the steps and ranks (default: 0)")
    add_search_options(parser)
    for one in (*SCALE, *DECODING):
        add(*one.names, **one.options | {"help": f"serve: {one.options['help']}"})
    add("--grpc-port", type=int, metavar="N", help="serve: answer gRPC there too (default: not)")
    add(
        "--replace",
        action="store_true",
        help="serve: take the place of what another process "
        "serves there, which answers until the new one does, and goes on where that does not start",
    )
    add("--layouts", choices=("own", "all"), help="parity: the run's own (default), or every legal one")
    add("--ranks", type=int, metavar="N", help="parity --layouts all: at most so many (default: 4)")
    foresight.add_options(add)
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _summary(values: Mapping[str, Any]) -> str:
    """What a person wants to know of a finished run."""
    lines = [f"{values['run']}: {values['steps']} steps on {values['world_size']} ranks, {values['seconds']} s"]
    baseline = values["baseline"] or {}
    for name, value in values["test"].items():
        beside = f"   ({values.get('baseline_name') or 'baseline'}: {baseline[name]:.4f})" if name in baseline else ""
        lines.append(f"  test {name:<12} {value:.4f}{beside}")
    if values["served"] is not None:
        lines.append(f"  served           {values['served']} (difference {values['served_max_difference']:.1e})")
    lines += [f"  {name:<16} {values[name]}" for name in ("checkpoint", "export", "report") if values[name]]
    return "\n".join(lines)


REPLACED_S = 5.0
"""Seconds between two looks whether another command serves in the place of this one."""


def serve(target: "str | TwoStages", options: argparse.Namespace, port: int) -> None:
    """Serve an export, a finished run's, or two stages of such, as a command's options say, until it is interrupted.

    It ends by itself where another command takes its place, which can be on a cluster that both joined.
    """
    from rtrain import config
    from rtrain.api import serve
    from rtrain.language.decoding import Decoding
    from rtrain.serving.scale import Scale

    scale, said = config.override(Scale(), scale_said(options)), decoding_said(options)
    joined = bool(os.environ.get("RAY_ADDRESS"))
    served: Served | None = None
    try:
        served = serve(
            target, replicas=scale, port=port, grpc_port=options.grpc_port, replace=options.replace,
            decoding=config.override(Decoding(), said) if said else None,
        )  # fmt: skip
        rpc = f", gRPC on {served.rpc}" if served.rpc else ""
        told = {"url": served.url} | ({"grpc": served.rpc} if served.rpc else {})
        text = json.dumps(told) if options.json else f"{served.url}/{served.asked} answers{rpc}; Ctrl-C ends it"
        print(text, flush=True)
        if not joined:
            threading.Event().wait()
        _wait_replaced(served)
        print("serve: another command serves in its place now, and this one ends", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if served is None or told_to_stop():
            raise  # Ctrl-C is how it is meant to end; this is another exit code
    finally:
        if served is not None:
            served.stop()


def _wait_replaced(served: "Served") -> None:
    """Until another command serves in its place."""
    from ray.exceptions import RayError

    while True:
        threading.Event().wait(REPLACED_S)
        with suppress(RayError):  # the cluster's head is away for a while
            if served.replaced():
                return


def _shown(path: str) -> str:
    """A script's path as the user would type it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path
