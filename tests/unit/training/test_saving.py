"""When checkpoints are written: behind training's back, by the clock, on a notice; losses never change by it."""

import os
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.saver import still_writing
from rtrain.duration import Duration
from rtrain.errors import CheckpointError, RunFailed
from rtrain.launch.local import train_inline
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.job import run_job
from rtrain.training.preemption import Notice, Preempted
from rtrain.training.world import join, leave
from tests.unit.training.jobs import At, job, lines, losses
from tests.unit.training.test_resume import named


class Seen(Callback):
    """Steps at which something was heard of, and of which checkpoint."""

    def __init__(self) -> None:
        self.now = 0
        self.heard: list[tuple[int, int]] = []
        self.writers: set[str] = set()

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        self.now = state.step
        self.writers |= {t.name for t in threading.enumerate()}

    def checkpointed(self, state: State) -> None:
        self.heard.append((self.now, state.step))


def test_background_and_foreground_train_and_save_the_same(tiny: Run) -> None:
    runs = [named(tiny, str(b), checkpoint__background=b, checkpoint__keep=99) for b in (True, False)]
    seen = [Seen(), Seen()]
    for run, callback in zip(runs, seen, strict=True):
        job(run, callback)
    assert losses(runs[0]) == losses(runs[1])
    committed = [CheckpointFolders(run.folder).committed() for run in runs]
    assert committed[0] == committed[1] and len(committed[0]) > 4
    assert all(now == of for now, of in seen[1].heard)
    # Each is heard of once, at the next one's start; the last two at the end.
    assert [of for _, of in seen[0].heard] == [of for _, of in seen[1].heard]
    assert [now for now, _ in seen[0].heard] == [of for _, of in seen[0].heard[1:]] + [30]
    assert "rtrain-save" in seen[0].writers and "rtrain-save" not in seen[1].writers
    first, second = ({p.parent.name: p.stat().st_size for p in Path(run.folder).rglob("*.safetensors")} for run in runs)
    assert first == second


def test_what_is_written_is_the_step_that_it_says(tiny: Run) -> None:
    """Training goes on, in place, while the thread writes: a resume from it must not have seen that."""
    with pytest.raises(RunFailed):
        job(named(tiny, "broken"), At(13))  # the checkpoint of step 10 or 7 may be in flight still
    job(named(tiny, "broken"))
    job(named(tiny, "whole"))
    assert losses(named(tiny, "broken")) == losses(named(tiny, "whole"))


def test_a_write_that_fails_behind_training_fails_the_run(tiny: Run) -> None:
    run = named(tiny, "gone", checkpoint__retry_s=0)
    checkpoints = CheckpointFolders(run.folder)

    def block() -> None:
        while still_writing():  # the commit of step 10, whose pruning would take the file away again
            time.sleep(0.01)
        (Path(run.folder) / "checkpoints" / "step-00000014").write_text("a file where a folder must be")

    with pytest.raises(CheckpointError, match=r"step 15: checkpoint step 14: rank 0: .*Nothing was committed"):
        job(run, At(13, block))
    assert max(checkpoints.committed()) == 10
    job(run)
    job(named(tiny, "undisturbed"))
    assert losses(run) == losses(named(tiny, "undisturbed"))


@pytest.mark.parametrize("background", [False, True])
def test_a_prune_that_fails_is_told_and_tried_again(
    tiny: Run, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = named(tiny, "full", checkpoint__background=background, checkpoint__keep=2)
    failed, delete = list[str](), Folder.delete

    def refuse(self: Folder, names: Collection[str]) -> None:
        if len(failed) < 3:
            failed.append(self.uri)
            raise PermissionError(13, "Permission denied", self.path)
        delete(self, names)

    monkeypatch.setattr(Folder, "delete", refuse)
    outcome = job(run)
    assert len(failed) == 3
    told = [x["text"] for x in lines(run, "event")]
    assert len(told) == 2, told  # the second of the saves that failed had two steps to delete, and tried both
    assert all("old checkpoints could not be deleted, after the commit of step" in x for x in told)
    assert "PermissionError" in told[0] and told[0].endswith("The next save tries again")
    assert set(CheckpointFolders(run.folder).steps()) <= {outcome.best_step, outcome.steps - 2, outcome.steps}
    folders = CheckpointFolders(run.folder)
    assert folders.steps() == folders.committed()


def test_seconds_between_checkpoints(tiny: Run) -> None:
    run = named(
        tiny,
        "clock",
        checkpoint__every__seconds=1e-6,
        checkpoint__keep=99,
        log_every_steps=3,
        duration=Duration(epochs=1),
    )
    job(run)
    assert {3, 6, 9, 10} <= set(CheckpointFolders(run.folder).committed())
    never = named(
        tiny,
        "never",
        checkpoint__every__seconds=1e6,
        checkpoint__keep=99,
        log_every_steps=3,
        duration=Duration(epochs=1),
    )
    job(never)
    assert CheckpointFolders(never.folder).committed() == [5, 7, 10]


def test_sigterm_leaves_a_checkpoint_of_the_last_step(tiny: Run) -> None:
    run, before = named(tiny, "term"), signal.getsignal(signal.SIGTERM)
    world = join(gpu=False, timeout_s=60)
    try:
        with (
            Notice() as notice,
            pytest.raises(Preempted, match=r"step 9: told to stop \(SIGTERM\); the checkpoint of step 9 is committed"),
        ):
            run_job(run, world, [At(8, lambda: os.kill(os.getpid(), signal.SIGTERM))], notice)
    finally:
        leave()
    assert signal.getsignal(signal.SIGTERM) is before
    assert max(CheckpointFolders(run.folder).committed()) == 9
    assert train_inline(run).attempts == 2
    undisturbed = named(tiny, "undisturbed")
    job(undisturbed)
    assert losses(run) == losses(undisturbed)
