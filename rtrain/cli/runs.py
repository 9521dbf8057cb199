"""`rtrain runs`, `repeat` and `sync`: which runs there are, one of them once more, what its trackers lack."""

import argparse
import sys
from pathlib import Path

from rtrain.cli.own import MODULE
from rtrain.cli.verb import Argument, Verb, answer


def _runs(options: argparse.Namespace) -> int:
    from rtrain.report.listing import runs_in, spell_runs

    found = runs_in(options.storage, options.where or (), options.by)
    text = spell_runs(found, options.by) if found else "no run is as --where says"
    answer(options, {"runs": [run.to_json() for run in found]}, text)
    return 0


def _repeat(options: argparse.Namespace) -> int:
    """Exit code 1 where something is not the same."""
    from rtrain.rehearsal.repeat import repeat

    def say(text: str) -> None:
        print(f"repeat: {text}", file=sys.stderr, flush=True)

    name = options.name or f"{Path(options.target.rstrip('/')).name}-again"
    found = repeat(options.target, name, launcher=options.launcher, say=say)
    answer(options, found.to_json(), found)
    return 0 if found.same else 1


def _sync(options: argparse.Namespace) -> int:
    """Exit code 1 where something is left."""
    from rtrain import config
    from rtrain.errors import UserError
    from rtrain.storage import Folder
    from rtrain.tracking import sync

    folder = Folder(options.target)
    names = folder.names()
    if "run.json" not in names:
        raise UserError(f"sync: there is no run in {options.target!r}. Give the folder of one, such as runs/NAME")
    run = config.from_dict(folder.read_json("run.json"))
    found = sync(
        run.tracking, run_name=run.name, folder=options.target, config=config.flatten(run),
        finished="result.json" in names,
    )  # fmt: skip
    answer(options, vars(found), found)
    return 1 if found.why else 0


RUNS = (
    Verb(
        "runs",
        "list the runs of a folder: how far each came and how good it is; repeat and compare are found below it too",
        (
            Argument("storage", nargs="?", default="runs", help="the folder they lie in, any storage (default: runs)"),
            Argument(
                "--where", action="append", metavar="CONDITION",
                help="those of which it holds, as auc>=0.7, state=finished or optim.lr<0.01; may be given again",
            ),
            Argument(
                "--by", default="", metavar="KEY", help="a metric, best first, or another key (default: newest first)"
            ),
        ),
        _runs,
    ),
    Verb(
        "repeat",
        "train a finished run's stored config anew, and say whether losses and metrics are the same (exit code 1: not)",
        (
            Argument("target", metavar="RUN", help="the run's folder"),
            MODULE,
            Argument("--name", default="", help="of the new run, beside the other (default: RUN-again)"),
            Argument(
                "--launcher", choices=("ray", "inline"), default="ray", help="inline: no Ray (default: ray)"
            ),
        ),
        _repeat,
    ),
    Verb(
        "sync",
        "send a tracker what it has not taken of a run that ended, which lies in spool/ (exit code 1: some still does)",
        (Argument("target", metavar="RUN", help="the run's folder"),),
        _sync,
    ),
)  # fmt: skip
