"""Taking a run over: which attempt of it this is, and the checkpoint that it goes on from, the same on every rank."""

from dataclasses import dataclass, field
from typing import TypeVar

import torch.distributed as dist

from rtrain.checkpoint import fence
from rtrain.checkpoint.fence import Attempt, Fenced
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import newest
from rtrain.errors import CheckpointError, RunFailed, one_line

T = TypeVar("T")


@dataclass
class _Begun:
    """What rank 0 tells the others of its attempt."""

    number: int = 0
    fenced: str = ""
    """Why it may not begin; empty: it may."""


@dataclass
class Newest:
    """The checkpoint to go on from."""

    step: int | None = None
    """None: there is none, so the run begins."""
    problems: list[str] = field(default_factory=list)
    """What was wrong with newer ones."""
    best_lost: bool = False
    """Whether the best checkpoint so far is gone, so that the next evaluation is the best."""
    unreadable: str = ""
    """Why the folder cannot be read; empty: it can."""


def take_over(folders: CheckpointFolders, driver: str, *, leads: bool) -> tuple[Attempt | None, int]:
    """The attempt, on rank 0, and its number, on every rank; a collective.

    Raises:
        Fenced: another driver has taken the run; on every rank, so that nobody is left waiting.
    """
    attempt, begun = None, _Begun()
    if leads:
        try:
            attempt = fence.begin(folders, driver=driver)
            begun.number = attempt.number
        except Fenced as error:
            begun.fenced = str(error)
    begun = _from_rank_0(begun)
    if begun.fenced:
        raise Fenced(begun.fenced)
    return attempt, begun.number


def find_newest(folders: CheckpointFolders, *, run: str, leads: bool) -> Newest:
    """The newest intact checkpoint, as rank 0 finds it; a collective.

    Raises:
        RunFailed: the folder cannot be read.
        CheckpointError: there are checkpoints, but none can be read.
    """
    found = Newest()
    if leads:
        try:
            stored, found.problems = newest(folders, note=True)
            if stored:
                found.step, best = stored.step, stored.meta["state"]["best_step"]
                found.best_lost = best is not None and best not in folders.committed()
                if found.best_lost:
                    found.problems.append(
                        f"checkpoint step {best}: the best one so far is gone, so the next evaluation is"
                    )
        except (OSError, CheckpointError) as error:
            found.unreadable = one_line(error)
    found = _from_rank_0(found)
    if found.unreadable:
        raise RunFailed(f"checkpoints of {folders.root.uri} cannot be read: {found.unreadable}")
    if found.step is None and found.problems:
        raise CheckpointError(
            f"run {run!r}: none of its checkpoints can be read ({found.problems[0]}). "
            "Bring one back, or start anew with --fresh"
        )
    return found


def _from_rank_0(value: T) -> T:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
