"""Search a recipe's fields with Ray Tune; each trial is itself a distributed run with its own folder."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from rtrain import notices
from rtrain.api import absolute
from rtrain.checkpoint import fence
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import ConfigError
from rtrain.planning import plan
from rtrain.report.facts import SEARCH
from rtrain.run import Run
from rtrain.storage import Folder, check_writable
from rtrain.tuning.board import Board
from rtrain.tuning.conductor import Asked, Conductor, objectives_of
from rtrain.tuning.journal import Entry, Journal
from rtrain.tuning.options import Search
from rtrain.tuning.proposals import Proposals
from rtrain.tuning.result import Tuned, tuned
from rtrain.tuning.space import Space, check_space, grid


@notices.aside()
def tune(
    run: Run,
    space: Space,
    *,
    search: Search | None = None,
    trials: int | None = None,
    command: str = "train",
    fresh: bool = False,
    warm: str = "",
) -> Tuned:
    """Search `space` (dotted key -> domain) for the best `evaluation.monitor`, or what `search` weighs.

    Each trial is a run of its own under `{storage}/{name}/trials/`, on the recipe's layout. It is scored on the
    validation split alone. The same call goes on with a search that was killed or ran out of what it might spend.

    `trials`: `search.trials`, for short. `command`: what trains the recipe, for `Tuned.command`. `fresh`: start anew;
    what the name held is moved aside. `warm`: folder of an earlier search, of whose finished trials the sampler learns.

    Raises:
        ConfigError: an empty space, a key that the run does not have, options that do not go together.
        RunFailed: no trial came to a value.
    """
    search = search or Search()
    search = replace(search, trials=trials) if trials is not None else search
    asked = absolute(run)
    run = replace(asked, handoff=replace(asked.handoff, export=False, serve_check=False))
    check_space(run, space)
    if search.sampler == "grid":
        next(grid(space), None)  # refuses what cannot be counted
    objectives = objectives_of(run, search)
    plan(run)
    data = run.data.open()
    data.refuse_rows()
    from rtrain.tuning.engine import searched  # ray.tune, a second to import
    from rtrain.tuning.page import write_report
    from rtrain.tuning.schedulers import scheduler_of

    metric, mode = next(iter(objectives.items()))
    rows = data.rows("train")
    scheduler = scheduler_of(search.scheduler, run, rows, space, metric=metric, mode=mode, seed=run.seed)
    proposals = Proposals(space, search, objectives, run.seed)
    if warm:
        if search.sampler not in ("tpe", "gp"):
            raise ConfigError(f"--warm: {search.sampler!r} learns nothing of earlier trials. Give --sampler tpe, or gp")
        if not Folder(warm).exists(SEARCH):
            raise ConfigError(f"--warm: there is no search in {warm!r}. Give the folder of one, such as runs/NAME")
        storage, _, name = warm.rstrip("/").rpartition("/")
        earlier = absolute(replace(run, name=name, storage=storage or "."))
        found = proposals.warm(list(Journal(earlier).entries.values()))
        _say(run, f"{found} finished trials of {warm} are known to the sampler")
    check_writable(run.storage)  # makes the folder: last, when nothing is left to be refused
    with ExitStack() as stack:
        journal = _opened(run, space, search, objectives, stack, fresh=fresh)
        entries = list(journal.entries.values())
        proposals.replay(entries, {entry.number: journal.points(entry) for entry in entries})
        closed = ""
        if journal.open or len(entries) < search.trials:
            about = Asked(run, space, search, objectives)
            with Board(run.name, objectives, search.trials) as board:
                closed = searched(Conductor(about, journal, proposals, board), scheduler)
        report = write_report(journal, proposals.importances(), closed)
        entries = [_so_far(entry, journal, objectives) for entry in journal.entries.values()]
        return tuned(asked, space, entries, objectives, command=command, report=report, closed=closed)


def _so_far(entry: Entry, journal: Journal, objectives: Mapping[str, str]) -> Entry:
    """Of a trial that was interrupted, what its run had reached by then, where all objectives are metrics of a run."""
    if entry.ended or entry.values:
        return entry
    points = [point for point in journal.points(entry) if objectives.keys() <= point.keys()]
    if not points:
        return entry
    name, mode = next(iter(objectives.items()))
    best = (max if mode == "max" else min)(points, key=lambda point: point[name])
    values = {key: best[key] for key in objectives}
    return replace(entry, step=points[-1]["step"], best_step=best["step"], values=values)


def _say(run: Run, text: str) -> None:
    print(f"{run.name}: {text}", file=sys.stderr, flush=True)


def _opened(
    run: Run, space: Space, search: Search, objectives: Mapping[str, str], stack: ExitStack, *, fresh: bool
) -> Journal:
    """The search's folder, taken by this process: another one that still writes there is refused from now on."""
    from rtrain.launch.taking import move_aside

    if fresh and Folder(run.folder).names():
        _say(run, f"the earlier search was moved to {move_aside(run.folder)}")
    Journal(run).open_as(space, search, objectives)
    driver = fence.take(CheckpointFolders(run.folder))
    stack.callback(driver.release)
    return Journal(run, driver.check)
