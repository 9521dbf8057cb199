"""One worker's whole job: resume or start, train, test the best checkpoint, record predictions.

Runs the same under Ray Train, torchrun and alone; what a launcher adds comes in as callbacks.
"""

import errno
import gc
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch.distributed as dist

from rtrain import config, notices
from rtrain.checkpoint import fence
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.saver import Saver
from rtrain.data.reader import Reader
from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.errors import CheckpointError, RtrainError, RunFailed, one_line
from rtrain.evaluation.columns import Columns
from rtrain.evaluation.rows import TEST_ROWS
from rtrain.evaluation.scoring import examine, measure, scan
from rtrain.ledger.record import Ledger
from rtrain.mesh import Mesh, lay_out
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.storage.patience import Patience
from rtrain.tracking import open_trackers
from rtrain.training.agreement import open_data, refuse, refuse_other_data, refuse_shares
from rtrain.training.attempt import find_newest, take_over
from rtrain.training.breakdown import Stopwatch
from rtrain.training.events import Callback, State, Together
from rtrain.training.history import History
from rtrain.training.injection import Inject
from rtrain.training.loop import fit
from rtrain.training.preemption import Notice, Preempted
from rtrain.training.ready import Copies
from rtrain.training.records import CURVES, TrackerCalls, write_placement, write_predictions
from rtrain.training.replica import Replica
from rtrain.training.surroundings import write_surroundings
from rtrain.training.watchdog import Watchdog
from rtrain.training.world import World
from rtrain.version import VERSION

SETTLE_S = 10.0
"""Seconds that a rank which failed waits for a checkpoint in flight; its peers may be gone."""


@dataclass(frozen=True)
class Outcome:
    """What a finished job knows, the same on every rank."""

    steps: int
    best_step: int
    world_size: int
    attempts: int
    valid: dict[str, float]
    """Metrics on the validation split at the best step."""
    test: dict[str, float]
    """Metrics on the test split at the best step."""
    breakdown: dict[str, float]
    """Seconds of this attempt's loop on rank 0, by where they went; `checkpoint`: training waited for one."""
    timeline: dict[str, float]
    """Seconds of this attempt on rank 0: `build` before the loop, the `loop`, and `test` after it."""
    examples_per_s: float
    """Over the whole of this attempt's training, evaluation and checkpoints included."""
    peak_bytes_per_rank: list[int]
    """High-water mark of each worker process's resident memory."""
    stop: str
    """Why it ended early; empty when it did not."""
    checkpoint: str
    """URI of the best checkpoint."""


def run_job(
    run: Run,
    world: World,
    callbacks: Sequence[Callback] = (),
    notice: Notice | None = None,
    driver: str = "",
    test: bool = True,
) -> Outcome:
    """Train `run` to its end on this rank; a collective over all ranks.

    `notice`: that the machine goes soon. `driver`: token of the driver that took the run (`fence.take`).
    `test`: score the test split with the best checkpoint; a trial of a search never sees it.

    Raises:
        RtrainError: with rank, node and step in front, on the rank where it happened.
    """
    state = State(total_steps=0, rows=1)
    try:
        with notices.aside(run.folder, f"rank-{world.rank:05d}"):
            return _Job(run, world, state, notice or Notice(), driver).finish(callbacks, test)
    except RtrainError as error:
        raise type(error)(f"rank {world.rank} on {world.node}, step {state.step}: {error}") from error
    except Exception as error:
        where = f"rank {world.rank} on {world.node}, step {state.step}"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{where}: {one_line(error)}. Free space in {run.storage!r} and start the run again: "
                "it resumes from its last committed step"
            ) from error
        raise RunFailed(f"{where}: {one_line(error)}") from error


class _Job:
    """What the steps of a job share."""

    def __init__(self, run: Run, world: World, state: State, notice: Notice, driver: str):
        self.run, self.world, self.state, self.notice = run, world, state, notice
        self.began = time.perf_counter()
        # With a patience of its own: what it writes about a silent rank is no sign of life.
        self.watchdog = Watchdog(
            Folder(run.folder), who=f"rank {world.rank} on {world.node}", silent_s=run.faults.hang_s
        )
        patience = Patience(budget_s=run.checkpoint.retry_s, went_on=self.watchdog.alive)
        self.folder, self.folders = Folder(run.folder, patience), CheckpointFolders(run.folder, patience)
        self.mesh: Mesh = lay_out(run.parallel, world.size)
        refuse(run, self.mesh)
        self.data: Samples[Any] = open_data(run)
        refuse_shares(run, self.data, self.mesh)
        self.ready = Copies(world.device)
        self.share = self.mesh.share(world.rank, run.blueprint.dealt)
        self.ledger = Ledger(counts=self.share.first)
        self.attempt, state.attempt = take_over(self.folders, driver, leads=world.leads)
        self.saver = Saver(self.folders, self.attempt, background=run.checkpoint.background)
        self.in_flight: State | None = None
        self.opened: list[Stored] = []

    def finish(self, callbacks: Sequence[Callback], test: bool) -> Outcome:
        """Train, then judge the best checkpoint; a rank that falls silent meanwhile ends its process."""
        self.watchdog.name = f"attempt-{self.state.attempt}-rank-{self.world.rank:05d}"
        with self.watchdog:
            try:
                return self._finish(callbacks, judged=test)
            finally:
                # Here, since whoever restarts workers ends this process in a way that runs no clean-up.
                for stored in self.opened:
                    stored.close()

    def _finish(self, callbacks: Sequence[Callback], *, judged: bool) -> Outcome:
        state = self.state
        saver = self.saver
        watch = Stopwatch(self.world.device, entered=self._goes_on, elsewhere=lambda: saver.stalled_s + saver.last_s)
        wall_s, trained = self._train(callbacks, watch)
        gc.collect()  # the trained replica holds itself in cycles; another one is built next, of the same size
        timeline = {"build": time.perf_counter() - self.began - wall_s, "loop": wall_s}
        breakdown = watch.breakdown() | {"checkpoint": self.saver.stalled_s, "last checkpoint": self.saver.last_s}
        breakdown["other"] = max(0.0, wall_s - sum(breakdown.values()))
        best_step = state.best_step if state.best_step is not None else state.step
        best = self._open(best_step)
        began = time.perf_counter()
        valid, test = self._judge(best) if judged else (self.state.best, {})
        timeline["test"] = time.perf_counter() - began
        peaks: list[int] = [0] * self.world.size
        dist.all_gather_object(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return Outcome(
            steps=state.step,
            best_step=best_step,
            world_size=self.world.size,
            attempts=state.attempt,
            valid=valid,
            test=test,
            breakdown=breakdown,
            timeline=timeline,
            examples_per_s=trained / wall_s,
            peak_bytes_per_rank=peaks,
            stop=state.stop,
            checkpoint=best.uri,
        )

    def _train(self, extra: Sequence[Callback], watch: Stopwatch) -> tuple[float, int]:
        """Train from the newest checkpoint on; returns the loop's seconds and the rows that it trained on."""
        run, world, state = self.run, self.world, self.state
        stored, problems = self._newest_checkpoint()
        replica = Replica(run, self.mesh, world, stored=stored, training=True)
        if stored:
            state.load(stored.meta["state"])
            patience, seconds = run.evaluation.patience, run.duration.seconds
            patient = patience is None or state.stale < patience
            if patient and (seconds is None or state.elapsed_s < seconds):
                state.stop = ""  # it had stopped early, and has been given more patience or time since
            if world.leads:
                self.ledger.load(stored)
        reader = self.data.reader(
            "train",
            global_batch=run.global_batch,
            seed=run.seed,
            rank=self.share.index,
            world_size=self.share.count,
            cursor=state.cursor,
            ready=self.ready,
        )
        state.rows = self.data.rows("train")
        state.total_steps = run.total_steps(state.rows)
        write_placement(self.folder, self.mesh, replica, self.attempt)
        write_surroundings(self.folder, world, self.attempt, data=self.data.fingerprint)
        attempt = self.attempt
        history = History(self.folder, resume_step=state.step, overtaken=lambda: attempt.overtaken) if attempt else None
        callbacks = [*extra, *(self._recorders(history, problems) if history else [])]
        if run.faults.inject:
            callbacks.append(Inject(run.faults.inject, self.folder, self.folders, world))
        together = Together(callbacks)
        if stored:
            together.restore(stored.meta.get("callbacks", {}))
        batches = iter(reader)
        replica.restore_rng()  # last: building everything above draws numbers
        began, before = time.perf_counter(), state.rows_seen
        try:
            fit(
                run,
                state,
                replica,
                batches,
                together,
                ledger=self.ledger,
                evaluate=partial(self._evaluate, replica, reader),
                save=partial(self._save, replica, history, together),
                watch=watch,
                notice=self.notice,
            )
        except BaseException as error:
            endings: list[Callable[[], object]] = [partial(self.saver.settle, SETTLE_S), watch.close]
            endings += [callback.close for callback in callbacks]
            if history:
                text = f"attempt {state.attempt} failed at step {state.step}: {one_line(error)}"
                endings.insert(0, partial(history.event, state.step, text))
            for end in endings:
                with suppress(Exception):  # storage that is full or gone must not hide why the attempt failed
                    end()
            raise
        finally:
            self._have_read(reader)
        together.close()
        return time.perf_counter() - began, state.rows_seen - before

    def _goes_on(self, phase: str) -> None:
        self.watchdog.beat(phase, self.state.step)

    def _scan(self, split: Split) -> Iterator[Any]:
        """This rank's share of a split to score; each batch shows that the rank goes on."""
        for batch in scan(self.run, self.data, split, self.mesh, self.world.rank, self.ready):
            self._goes_on(f"evaluation of {split}")
            if split == "test" and self.notice.given:
                raise Preempted(
                    "told to stop (SIGTERM) while its best checkpoint was judged; training is done and committed. "
                    "The same command goes on from there"
                )
            yield batch

    def _evaluate(self, replica: Replica, reader: Reader[Any]) -> dict[str, float]:
        if self.state.done:
            self._have_read(reader)  # its window makes room for that of the split that is scored
        return self._measure_valid(replica)

    def _have_read(self, reader: Reader[Any]) -> None:
        reader.close()
        self.data.let_go("train")

    def _measure_valid(self, replica: Replica) -> dict[str, float]:
        return measure(replica, self._scan("valid"), self.run.metrics, Columns(self.data, "valid"))

    def _judge(self, best: Stored) -> tuple[dict[str, float], dict[str, float]]:
        """Validation and test metrics of a checkpoint; writes the predictions that a server is held against."""
        self._goes_on("best checkpoint")
        replica = Replica(self.run, self.mesh, self.world, stored=best, training=False)
        run = self.run
        found = examine(
            replica,
            self._scan("test"),
            run.metrics,
            Columns(self.data, "test"),
            grouped=bool(run.data.group),
            slices=run.evaluation.slices,
        )
        if self.attempt and not self.attempt.overtaken:
            if found.curves:
                self.folder.write_json(CURVES, found.curves)
            if found.rows.tasks:
                self.folder.write(TEST_ROWS, found.rows.to_parquet(first=self.data.numbers("test").start))
        if replica.objective.link or replica.objective.tallies == "losses":
            write_predictions(self.run, self.data, replica, self.folder, self.attempt, self.ready)
        valid = self.state.best
        if valid.keys() != found.values.keys():  # other metrics than it was trained with, or its score was lost
            valid = self._measure_valid(replica)
        return valid, found.values | found.slices

    def _open(self, step: int) -> Stored:
        stored = Stored(self.folders.of(step), step)
        self.opened.append(stored)
        return stored

    def _save(self, replica: Replica, history: History | None, callbacks: Callback, now: bool) -> list[State]:
        """Begin a checkpoint, or write it now; the states whose commit was seen, the one in flight before first."""
        state, ledger, folders = self.state, self.ledger, self.folders
        self.saver.settle()
        self._tell_problems(history)
        seen = [self.in_flight] if self.in_flight else []
        self.in_flight = None
        ledger.gather()
        meta = {
            "state": state.to_json(),
            "data_fingerprint": self.data.fingerprint,
            "config": config.to_dict(self.run),
            "axes": asdict(self.mesh),
            "placement": [p.to_json() for p in replica.placements],
            "ledger": ledger.to_json() | {"rows": state.rows},
            "callbacks": callbacks.state(),
            "attempt": state.attempt,
            "versions": {"rtrain": VERSION, "python": platform.python_version()},
            "saved_at": time.time(),
        }
        best = {state.best_step} if state.best_step is not None else set()
        self.saver.save(
            state.step,
            chain(replica.chunks(), ledger.chunks()),
            meta,
            committed=partial(folders.prune, self.run.checkpoint.keep, best, check=fence.check_of(self.attempt)),
            now=now,
        )
        if now or not self.saver.background:
            self._tell_problems(history)
        snapshot = replace(state, best=dict(state.best))
        if now or not self.saver.background:
            return [*seen, snapshot]
        self.in_flight = snapshot
        return seen

    def _tell_problems(self, history: History | None) -> None:
        """Old checkpoints that could not be deleted fail no run: the next save tries again."""
        while history and self.saver.problems:
            text = f"old checkpoints could not be deleted, {self.saver.problems.pop(0)}. The next save tries again"
            history.event(self.state.step, text)

    def _recorders(self, history: History, problems: list[str]) -> list[Callback]:
        """What rank 0 writes while it trains."""
        for problem in problems:
            history.event(self.state.step, f"{problem}. Resuming from step {self.state.step}")
        trackers = open_trackers(
            self.run.tracking,
            run_name=self.run.name,
            folder=self.run.folder,
            config=config.flatten(self.run),
            attempt=self.state.attempt,
            resume_step=self.state.step,
        )
        return [history, TrackerCalls(trackers, overtaken=history.overtaken)]

    def _newest_checkpoint(self) -> tuple[Stored | None, list[str]]:
        """The newest intact checkpoint; what was wrong with newer ones."""
        found = find_newest(self.folders, run=self.run.name, leads=self.world.leads)
        if found.step is None:
            return None, found.problems
        stored = self._open(found.step)
        if found.best_lost:
            stored.meta["state"] |= {"best": {}, "best_step": None, "stale": 0}
        refuse_other_data(self.run, stored, self.data)
        return stored, found.problems
