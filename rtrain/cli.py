"""The command line: the verbs of a recipe (`main`), and the `rtrain` command (`console`).

Every verb takes `--json` (one line of JSON on stdout, everything else on stderr). Exit codes:
0 done, 1 the run failed, 2 something that the user gave must be mended, 130 interrupted.
"""

import argparse
import json
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rtrain.errors import ConfigError, RtrainError, UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from rtrain.run import Run
    from rtrain.tuning import Domain

VERBS = {
    "train": "train to the end (resumes by name), test, export, report; the default",
    "plan": "show ranks, table placement and bytes per rank; starts nothing",
    "parity": "train some steps at this layout and in one process (CPU), and compare; --layouts all: every one",
    "chaos": "bring failures about, each beside an undisturbed twin, and show what each cost",
    "tune": "search the recipe's space, each trial a distributed run",
    "serve": "serve the finished run's export until Ctrl-C",
    "config": "print the resolved config",
}
RECIPE_VERBS = ("train", "plan", "parity", "chaos", "tune", "config")
OWN_FLAGS = (
    "--json",
    "--debug",
    "--fresh",
    "--launcher",
    "--trials",
    "--replicas",
    "--layouts",
    "--ranks",
    "--failures",
    "--draw",
    "--help",
    "-h",
)


def main(
    run: "Callable[[], Run]",
    debug: "Callable[[], Run] | None" = None,
    *,
    space: "Mapping[str, Domain] | None" = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """A recipe's command line; ends the process with the exit code.

    `run` and `debug` give the full and the small config, `space` the fields that `tune` searches.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    recipe = _shown(sys.argv[0])
    sys.exit(_guarded(lambda: _recipe(run, debug, space or {}, given, recipe), "--json" in given))


def console() -> None:
    """The `rtrain` command."""
    given = sys.argv[1:]
    sys.exit(_guarded(lambda: _console(given), "--json" in given))


def _guarded(work: Callable[[], int], as_json: bool) -> int:
    """Run a verb; a user's mistake becomes one line, anything unforeseen keeps its traceback."""
    try:
        return work()
    except RtrainError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": one_line(error), "exit_code": error.exit_code}), flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": "interrupted", "exit_code": 130}), flush=True)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _recipe(
    run: "Callable[[], Run]",
    debug: "Callable[[], Run] | None",
    space: "Mapping[str, Domain]",
    given: list[str],
    recipe: str,
) -> int:
    parser = _parser(recipe)
    options, rest = parser.parse_known_args(given)
    verb, changes = _verb_and_changes(rest)
    if options.debug and debug is None:
        raise ConfigError("--debug: this recipe has no debug()")
    chosen = (debug if options.debug and debug else run)()
    if options.help:
        _help(parser, chosen)
        return 0

    from rtrain import config

    config.validate(chosen)
    chosen = config.override(chosen, changes)
    command = shlex.join(["python", recipe, *given])
    if verb == "plan":
        from rtrain.api import plan

        planned = plan(chosen)
        print(json.dumps(planned.to_json()) if options.json else planned)
    elif verb == "config":
        print(json.dumps(config.to_dict(chosen)) if options.json else golden(chosen), end="\n" if options.json else "")
    elif verb == "tune":
        from rtrain.tuning import tune

        base = shlex.join(["python", recipe, "train", *_without_verb(given, verb)])
        with _stdout_kept():
            tuned = tune(chosen, space, trials=options.trials, command=base)
        print(json.dumps(tuned.to_json()) if options.json else tuned)
    elif verb == "parity":
        return _parity(chosen, every=options.layouts == "all", ranks=options.ranks, as_json=options.json)
    elif verb == "chaos":
        return _chaos(chosen, options)
    elif verb == "serve":
        _serve(f"{chosen.storage}/{chosen.name}", options.replicas, chosen.handoff.port, options.json)
    else:
        from rtrain.api import train

        with _stdout_kept():
            result = train(chosen, launcher=options.launcher, fresh=options.fresh, command=command)
        if result is not None:
            print(json.dumps(dict(result.values)) if options.json else _summary(result.values), flush=True)
    return 0


def _parity(run: "Run", *, every: bool, ranks: int, as_json: bool) -> int:
    """Exit code 1 when a layout differs from one process."""
    from rtrain.parity import all_layouts, parity

    layouts = tuple(all_layouts(run, ranks)) if every else None
    found = parity(run, layouts=layouts, say=lambda text: print(f"parity: {text}", file=sys.stderr, flush=True))
    print(json.dumps(found.to_json()) if as_json else found)
    return 0 if found.holds else 1


def _chaos(run: "Run", options: argparse.Namespace) -> int:
    """Exit code 1 when a failure left a trace."""
    from rtrain.chaos import KINDS, chaos

    kinds = options.failures.split(",") if options.failures != "all" else list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"--failures: unknown {kind!r}{did_you_mean(kind, KINDS) or '. Known: ' + ', '.join(KINDS)}"
            )

    def say(text: str) -> None:
        print(f"chaos: {text}", file=sys.stderr, flush=True)

    with _stdout_kept():
        found = chaos(run, kinds=kinds, seed=options.draw, launcher=options.launcher, say=say)
    print(json.dumps(found.to_json()) if options.json else found)
    return 0 if found.holds else 1


def _stdout_kept() -> redirect_stdout[TextIO]:
    """For the verb's answer: what is printed meanwhile, as Ray does of a worker that died, goes to standard error."""
    return redirect_stdout(sys.stderr)


def _tell(text: str) -> None:
    print(f"rtrain: {text}", file=sys.stderr, flush=True)


def golden(run: "Run") -> str:
    """The flattened config as text, one key a line; recipes keep theirs as golden files."""
    from rtrain import config

    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.flatten(run).items())


def _parser(recipe: str) -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<8} {what}" for name, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=f"python {recipe}",
        usage=f"python {recipe} [VERB] [options] [--key value ...]",
        description=f"verbs:\n{verbs}\n\nAny field of the config is set by its dotted key: --optim.lr 3e-4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and every field of the config")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="the recipe's small config: the same path in seconds")
    parser.add_argument("--fresh", action="store_true", help="train: start anew; the earlier run is moved aside")
    parser.add_argument(
        "--launcher",
        choices=("ray", "inline", "torchrun"),
        default="ray",
        help="train: on Ray (default), in this process, or as one of torchrun's ranks",
    )
    parser.add_argument("--failures", default="all", help="chaos: which, parted by commas (default all)")
    parser.add_argument("--draw", type=int, default=0, help="chaos: seed of the steps and ranks (default 0)")
    parser.add_argument("--trials", type=int, default=8, help="tune: how many (default 8)")
    parser.add_argument("--replicas", type=int, default=1, help="serve: how many (default 1)")
    parser.add_argument("--layouts", choices=("own", "all"), default="own", help="parity: the run's own, or every one")
    parser.add_argument("--ranks", type=int, default=4, help="parity --layouts all: at most so many (default 4)")
    parser.error = _refuse  # type: ignore[assignment,method-assign]
    return parser


def _refuse(message: str) -> None:
    raise ConfigError(f"command line: {message}")


def _verb_and_changes(rest: list[str]) -> tuple[str, dict[str, object]]:
    """The verb, and `--dotted.key value` pairs as a dict."""
    verb, changes = "train", dict[str, object]()
    words = list(rest)
    if words and not words[0].startswith("-"):
        verb = words.pop(0)
        if verb not in VERBS:
            raise ConfigError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS) or '. Verbs: ' + ', '.join(VERBS)}")
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--"):
            raise ConfigError(f"command line: {word!r} is neither an option nor the value of one")
        if not equals:
            if not words:
                near = did_you_mean(key, OWN_FLAGS)
                raise ConfigError(f"{key[2:]}: no value given{near or f'; write {key} VALUE'}")
            value = words.pop(0)
        changes[key[2:].replace("-", "_")] = value
    return verb, changes


def _without_verb(given: list[str], verb: str) -> list[str]:
    words = [w for w in given if w not in (verb, "--json")]
    if "--trials" in words:
        at = words.index("--trials")
        del words[at : at + 2]
    return words


def _help(parser: argparse.ArgumentParser, run: "Run") -> None:
    """Our own options by argparse, the config's fields by tyro, which reads their docstrings."""
    import tyro

    print(parser.format_help())
    tyro.cli(
        type(run),
        default=run,
        args=["--help"],
        prog="config fields",
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _summary(values: Mapping[str, Any]) -> str:
    """What a person wants to know of a finished run."""
    lines = [f"{values['run']}: {values['steps']} steps on {values['world_size']} ranks, {values['seconds']} s"]
    baseline = values["baseline"] or {}
    for name, value in values["test"].items():
        beside = f"   (user and item means alone: {baseline[name]:.4f})" if name in baseline else ""
        lines.append(f"  test {name:<12} {value:.4f}{beside}")
    if values["served"] is not None:
        lines.append(f"  served           {values['served']} (difference {values['served_max_difference']:.1e})")
    lines += [f"  {name:<16} {values[name]}" for name in ("checkpoint", "export", "report") if values[name]]
    return "\n".join(lines)


def _serve(target: str, replicas: int, port: int, as_json: bool) -> None:
    import threading

    from rtrain.api import serve

    served = serve(target, replicas=replicas, port=port)
    print(json.dumps({"url": served.url}) if as_json else f"{served.url}/predict answers; Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        served.stop()


def _shown(path: str) -> str:
    """A script's path as the user would type it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def _console(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="rtrain",
        description="Distributed training on Ray. A recipe's own verbs: rtrain train RECIPE, or python RECIPE train.",
        allow_abbrev=False,
    )
    parser.error = _refuse  # type: ignore[assignment,method-assign]
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        verb.error = _refuse  # type: ignore[assignment,method-assign]
        verb.add_argument("--json", action="store_true", help="one line of JSON on stdout")
        return verb

    doctor = add("doctor", "say what is wrong with this machine, and how to mend it")
    doctor.add_argument("--storage", default="runs", help="where runs are to be written (default: runs)")
    doctor.add_argument("--port", type=int, default=8000, help="port that Ray Serve is to use (default: 8000)")
    data = add("data", "get and prepare data sets")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="fetch a named data set into the cache")
    get.add_argument("name", help="ml-100k")
    tokenize = actions.add_parser("tokenize", help="text files -> token shards for a language model")
    tokenize.add_argument("sources", nargs="+", help="text files, or folders of them; a file is a document")
    tokenize.add_argument("--out", required=True, help="folder of the shards; new or empty")
    tokenize.add_argument("--tokenizer", default="bytes", help="bytes, bpe:SIZE (trained here), or a tokenizer.json")
    for action in (get, tokenize):
        action.error = _refuse  # type: ignore[assignment,method-assign]
        action.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    serve = add("serve", "serve a finished run, or its export, until Ctrl-C")
    serve.add_argument("target", help="the run's folder or its export/ folder")
    serve.add_argument("--replicas", type=int, default=1)
    serve.add_argument("--port", type=int, default=8000)
    report = add("report", "write a run's report.html anew")
    report.add_argument("target", help="the run's folder")
    ledger = add("ledger", "say which samples a run's committed steps consumed, epoch by epoch")
    ledger.add_argument("target", help="the run's folder")
    ledger.add_argument("--verify", action="store_true", help="prove against the data: none lost, none repeated")
    checkpoints = add("checkpoints", "list, verify, show, compare, export or prune a run's checkpoints")
    checkpoints.add_argument("target", help="the run's folder")
    checkpoints.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "verify", "show", "compare", "export", "prune"),
        help="list (default); verify [STEP ...]: read every byte back; show [STEP]; compare STEP STEP; "
        "export [STEP] --to FOLDER: the model as one safetensors file; prune --keep N",
    )
    checkpoints.add_argument("steps", nargs="*", type=int, metavar="STEP", help="none: the newest (verify: all)")
    checkpoints.add_argument("--to", help="export: folder or URI to write to")
    checkpoints.add_argument("--keep", type=int, help="prune: newest intact ones that stay, beside the best")
    for name in RECIPE_VERBS:
        verb = add(name, f"{VERBS[name]} (of a recipe)")
        verb.add_argument("recipe", help="path of the recipe's Python file")

    options, rest = parser.parse_known_args(given)
    if options.verb is None:
        parser.print_help()
        return 0
    if options.verb in RECIPE_VERBS:
        return _run_recipe(options, rest)
    if rest:
        raise UserError(f"rtrain {options.verb}: it takes no {' '.join(rest)}; see rtrain {options.verb} --help")
    if options.verb == "doctor":
        from rtrain.doctor import examine, render, to_json

        findings = examine(storage=options.storage, ports=(options.port,))
        print(to_json(findings) if options.json else render(findings))
        return 1 if any(f.status == "fail" for f in findings) else 0
    if options.verb == "data":
        if options.action == "tokenize":
            from rtrain.data.tokenize import tokenize as write

            told = {"folder": str(write(options.sources, options.out, tokenizer=options.tokenizer, say=_tell))}
        else:
            from rtrain.data import sources

            told = {"name": options.name, "folder": str(sources.get(options.name))}
        print(json.dumps(told) if options.json else told["folder"])
    elif options.verb == "serve":
        _serve(options.target, options.replicas, options.port, options.json)
    elif options.verb == "ledger":
        from rtrain.training.proof import account

        said = account(options.target, verify=options.verify)
        print(json.dumps(said.to_json()) if options.json else said)
        return 0 if said.holds or not options.verify else 1
    elif options.verb == "checkpoints":
        return _checkpoints(options)
    elif options.verb == "report":
        from rtrain.report import write_report

        path = write_report(options.target)
        print(json.dumps({"report": path}) if options.json else path)
    return 0


def _checkpoints(options: argparse.Namespace) -> int:
    """The verb `rtrain checkpoints`."""
    from rtrain.checkpoint import examine
    from rtrain.checkpoint.store import CheckpointFolders

    folders, steps = CheckpointFolders(options.target), options.steps
    wanted = {"list": (0, 0), "show": (0, 1), "compare": (2, 2), "export": (0, 1), "prune": (0, 0)}
    fewest, most = wanted.get(options.action, (0, len(steps)))
    if not fewest <= len(steps) <= most:
        raise UserError(f"rtrain checkpoints {options.action}: it takes {most} steps, got {len(steps)}")
    if not folders.steps():
        raise UserError(f"rtrain checkpoints: {folders.root.uri} holds none. Give a run's folder, such as runs/NAME")
    text: str | None = None
    code = 0
    said: Any
    if options.action == "list":
        rows = examine.listing(folders)
        said, text = [row.to_json() for row in rows], "\n".join(map(_checkpoint_line, rows))
    elif options.action == "verify":
        found = examine.verify(folders, steps or folders.committed())
        said = {str(step): problem for step, problem in found.items()}
        text = "\n".join(problem or f"checkpoint step {step}: intact" for step, problem in found.items())
        code = 1 if any(found.values()) else 0
    elif options.action == "show":
        said = examine.show(examine.at(folders, steps[0] if steps else None))
    elif options.action == "compare":
        said = examine.compare(*(examine.at(folders, step) for step in steps))
    elif options.action == "export":
        if not options.to:
            raise UserError("rtrain checkpoints export: say where to with --to FOLDER")
        said = examine.export(examine.at(folders, steps[0] if steps else None), options.to)
        text = said["uri"]
    else:
        if options.keep is None or options.keep < 1:
            raise UserError("rtrain checkpoints prune: say how many stay with --keep N, at least 1")
        best = {row.step for row in examine.listing(folders) if row.best}
        said = {"deleted": folders.prune(options.keep, best, under_way=True), "left": folders.committed()}
        text = f"deleted {said['deleted'] or 'none'}; left {said['left']}"
    print(json.dumps(said) if options.json else text if text is not None else json.dumps(said, indent=1), flush=True)
    return code


def _checkpoint_line(row: Any) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in row.metrics.items())
    if row.metrics_step is not None:
        metrics += f"  (of step {row.metrics_step})"
    who = f"attempt {row.attempt}, {row.world_size} ranks" if row.attempt is not None else ""
    best = "best" if row.best else ""
    return (
        f"step {row.step:>8}  {row.state:<12}  {row.bytes / 2**20:>9.1f} MiB  {best:<4}  {who:<20}  {metrics}".rstrip()
    )


def _run_recipe(options: argparse.Namespace, rest: list[str]) -> int:
    """Hand over to the recipe's own main()."""
    if not Path(options.recipe).is_file():
        raise UserError(f"rtrain {options.verb}: there is no recipe {options.recipe!r}. Give the path of a Python file")
    sys.argv = [options.recipe, options.verb, *rest, *(["--json"] if options.json else [])]
    sys.path.insert(0, str(Path(options.recipe).resolve().parent))
    runpy.run_path(options.recipe, run_name="__main__")
    return 0
