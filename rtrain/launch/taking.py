"""What a start finds under its name: a finished run, one to go on with, another one; and taking its folder."""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from rtrain import config
from rtrain.checkpoint import fence
from rtrain.checkpoint.fence import Driver
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data.samples import Samples
from rtrain.duration import CLOCK
from rtrain.errors import CheckpointError, ConfigError
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training.agreement import open_data, refuse_other_data

# A resumed run may differ in these; anything else would make it another run.
MAY_CHANGE = (
    "storage", "parallel", "cluster", "checkpoint", "evaluation", "faults", "tracking", "handoff",
    "metrics", "log_every_steps", "duration", "data.prefetch", "data.leakage",
)  # fmt: skip
# And of these, a finished run has something to do again.
GIVES_WORK = ("metrics", "handoff")
CHANGES_NOTHING = ("handoff.port",)
# And of these, one whose steps are not all trained.
LENGTH, EVALUATION = "duration", "evaluation"
RESULT, REPORT = "result.json", "report.html"
MOVING = ".moving"
"""In a folder into which an earlier run is being moved, file by file."""
KEPT = re.compile(r"result~(\d+)\.json")
Say = Callable[[str], None]


def finished(run: Run, asked: Run, say: Say) -> Mapping[str, Any] | None:
    """The stored result of a run that has ended, where nothing that was asked for since gives it more to do.

    `asked`: as the user has it, before the launcher set its own number of workers: that gives nothing to do.
    """
    folder = Folder(run.folder)
    if not (folder.exists(RESULT) and folder.exists("run.json")):
        return None
    stored: Mapping[str, Any] = folder.read_json(RESULT)
    before = config.from_dict(folder.read_json("run.json"))
    changed = min((config.diff(before, now) for now in (run, asked)), key=len)
    works = [c for c in changed if c.startswith(GIVES_WORK) and not c.startswith(CHANGES_NOTHING)]
    if works or not all(c.startswith(MAY_CHANGE) for c in changed):
        return None
    longer, judged = (any(c.startswith(names) for c in changed) for names in (LENGTH, EVALUATION))
    by_clock = stored["stop"].startswith(CLOCK)
    goes_on = judged or (longer and (not stored["stop"] or by_clock))
    if goes_on and _total_steps(run) > stored["steps"]:
        return None
    sentence = f"finished already, at step {stored['steps']}; this is its stored result (--fresh trains it anew)"
    if changed:
        why = f": {stored['stop']}; evaluation.patience gives it more" if stored["stop"] and not by_clock else ""
        sentence += f". What changed ({'; '.join(changed)}) leaves no step to train{why}"
    say(sentence)
    return stored


def _total_steps(run: Run) -> int:
    return run.total_steps(open_data(run).rows("train"))


def refuse_another(run: Run) -> None:
    """Refuse a name under which another run has checkpoints, before anything is started.

    Raises:
        ConfigError: what differs, and a name that is free.
    """
    folder = Folder(run.folder)
    if not folder.exists("run.json"):
        return
    changes = config.diff(config.from_dict(folder.read_json("run.json")), run)
    other = [c for c in changes if not c.startswith(MAY_CHANGE)]
    if other and CheckpointFolders(run.folder).committed():
        _refuse_another_file(run, other)
        raise ConfigError(
            f"run {run.name!r} exists with another config: {'; '.join(other[:5])}. Train this one under a name of its "
            f"own (--name {free_name(run)}), go back to the stored values, or start anew with --fresh, which moves the "
            "earlier run aside"
        )


def _refuse_another_file(run: Run, changes: list[str]) -> None:
    """Of changed keys, the digest of a vocabulary's or tokenizer's file says that rows of a table stand for others."""
    for line in changes:
        if match := re.fullmatch(r"(.+)\.sha256: (\w{64}) -> (\w{64})", line):
            file, kind = config.flatten(run)[f"{match[1]}.file"], match[1].rpartition(".")[2].removesuffix("_file")
            raise ConfigError(
                f"run {run.name!r}: {match[1]}: {kind} of another version: {file} has sha256 {match[3]}, but the run "
                f"was trained with {match[2]}. Put that version back, train this one under a name of its own "
                f"(--name {free_name(run)}), or start anew with --fresh"
            )


def refuse_changed_data(run: Run, data: Samples[Any]) -> bool:
    """Refuse to go on with other data, before a worker starts and a result is moved aside; a rank looks again.

    Whether a checkpoint tells that all rows have been looked through as they would be now, before its first step.

    Raises:
        ConfigError: as `refuse_other_data`.
    """
    folders, folder = CheckpointFolders(run.folder), Folder(run.folder)
    for step in reversed(folders.committed()):
        with suppress(CheckpointError, OSError):  # of one that cannot be read the ranks tell
            refuse_other_data(run, Stored(folders.of(step), step), data)
            before = config.from_dict(folder.read_json("run.json"))
            return not any(change.startswith("data.leakage") for change in config.diff(before, run))
    return False


def warn_of_changed_data(run: Run, data: Samples[Any], say: Say) -> None:
    """Say of a finished run that its result is of other data than there are now."""
    try:
        refuse_changed_data(run, data)
    except ConfigError as changed:
        say(f"its result is of other data: {changed}")


def free_name(run: Run) -> str:
    """The first of NAME-2, NAME-3, ... that nothing is stored under."""
    taken = set(Folder(run.storage).names())
    return next(name for n in range(2, len(taken) + 3) if (name := f"{run.name}-{n}") not in taken)


def take(run: Run, stack: ExitStack, *, fresh: bool, say: Say, again: str = "") -> Driver:
    """Make the run's folder this run's, and this its driver: nothing is written before all else has been checked.

    A result that is there already stays beside the new one. `again`: as in `fence.take`.

    Raises:
        Fenced: another driver has taken the run in this very moment, or since `again` did.
        ConfigError: the folder holds checkpoints of another run under the same name.
    """
    folder = Folder(run.folder)
    if fresh and not again and folder.names():
        say(f"the earlier run was moved to {move_aside(run.folder)}")
    refuse_another(run)
    steps = CheckpointFolders(run.folder).committed()
    if folder.exists("run.json"):
        changes = config.diff(config.from_dict(folder.read_json("run.json")), run)
        if changes:
            say(f"changed since the last start: {'; '.join(changes)}")
    if steps:
        say(f"resumes from step {steps[-1]}")
    driver = fence.take(CheckpointFolders(run.folder), again=again)
    stack.callback(driver.release)
    driver.check()
    # In this order: whoever sees a result beside a config sees the config that it belongs to.
    if folder.exists(RESULT):
        say(f"the result so far stays as {_keep_result(folder)}")
    folder.write_json("run.json", config.to_dict(run))
    return driver


def earlier_result(folder: Folder) -> Mapping[str, Any]:
    """The newest of the results that were kept beside a new one; empty where there is none."""
    numbers = [int(match[1]) for name in folder.names() if (match := KEPT.fullmatch(name))]
    result: Mapping[str, Any] = folder.read_json(f"result~{max(numbers)}.json") if numbers else {}
    return result


def _keep_result(folder: Folder) -> str:
    names = folder.names()
    number = next(n for n in range(1, len(names) + 2) if f"result~{n}.json" not in names)
    for name in (REPORT, RESULT):
        if name in names:
            stem, _, kind = name.partition(".")
            folder.write(f"{stem}~{number}.{kind}", folder.read(name))
            folder.discard(name)
    return f"result~{number}.json"


def move_aside(folder: str) -> str:
    """Rename a run's or a search's folder (any URI) to the first of FOLDER~1, FOLDER~2, ... that is free; which.

    Where the storage renames nothing, a move that was killed is gone on with.
    """
    number = 1
    while (names := (to := Folder(f"{folder}~{number}")).names()) and MOVING not in names:
        number += 1
    if not to.is_local:
        to.write(MOVING, b"")
    Folder(folder).move(to)
    if not to.is_local:
        to.discard(MOVING)
    return to.uri
