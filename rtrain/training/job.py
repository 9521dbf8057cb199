"""One worker's whole job: resume or start, train, test the best checkpoint, record predictions.

Runs the same under Ray Train, torchrun and alone; what a launcher adds comes in as callbacks.
"""

import json
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from rtrain import config
from rtrain.checkpoint.format import Stored, newest, save
from rtrain.checkpoint.store import CheckpointFolders, Folder
from rtrain.data.interactions import Dataset
from rtrain.errors import ConfigError, RtrainError, RunFailed, one_line
from rtrain.mesh import Mesh, lay_out
from rtrain.parallel.legal import refuse
from rtrain.parallel.placement import TablePlacement, table_bytes
from rtrain.run import Run
from rtrain.training.breakdown import Stopwatch
from rtrain.training.evaluation import measure
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.history import History
from rtrain.training.loop import fit
from rtrain.training.replica import Replica
from rtrain.training.trackers import Tracker, open_trackers
from rtrain.training.world import World
from rtrain.version import VERSION

PREDICTIONS = "predictions.json"
ATTEMPT = "attempt.json"


@dataclass(frozen=True)
class Outcome:
    """What a finished job knows, the same on every rank."""

    steps: int
    best_step: int
    world_size: int
    attempts: int
    valid: dict[str, float]
    test: dict[str, float]
    breakdown: dict[str, float]
    examples_per_s: float
    peak_bytes_per_rank: list[int]
    stop: str
    checkpoint: str


def run_job(run: Run, world: World, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train `run` to its end on this rank; a collective over all ranks.

    Raises:
        RtrainError: with rank, node and step in front, on the rank where it happened.
    """
    state = State(total_steps=0, rows=1)
    try:
        state.attempt = _begin_attempt(Folder(run.folder), world)
        return _run(run, world, state, callbacks)
    except RtrainError as error:
        raise type(error)(f"rank {world.rank} on {world.node}, step {state.step}: {error}") from error
    except Exception as error:
        raise RunFailed(f"rank {world.rank} on {world.node}, step {state.step}: {one_line(error)}") from error


def _run(run: Run, world: World, state: State, extra: Sequence[Callback]) -> Outcome:
    mesh = lay_out(run.parallel, world.size)
    tables = run.model.table_list(run.data.schema)
    refuse(run.parallel, run.sparse_optim, tables, world_size=world.size, model=type(run.model).__name__)
    dataset = run.data.open()
    folder, folders = Folder(run.folder), CheckpointFolders(run.folder)
    stored, problems = _agree_on_checkpoint(folders, world)
    if stored and stored.meta["data_fingerprint"] != dataset.fingerprint:
        raise ConfigError(
            f"run {run.name!r}: the data changed since step {stored.step} (fingerprint "
            f"{stored.meta['data_fingerprint']} -> {dataset.fingerprint}). Train under another name, or use --fresh"
        )

    replica = Replica(run, mesh, world, stored=stored, training=True)
    if stored:
        state.load(stored.meta["state"])
    reader = dataset.reader(
        "train",
        global_batch=run.global_batch,
        seed=run.seed,
        rank=world.rank,
        world_size=world.size,
        cursor=state.cursor,
    )
    state.rows = dataset.rows("train")
    state.total_steps = min(run.epochs * reader.batches_per_epoch, run.max_steps or 2**62)
    watch = Stopwatch(world.device)

    callbacks: list[Callback] = list(extra)
    if world.leads:
        callbacks += _leading_callbacks(run, state, folder, replica.placements, mesh, problems)

    def keep() -> None:
        meta = {
            "state": state.to_json(),
            "data_fingerprint": dataset.fingerprint,
            "config": config.to_dict(run),
            "axes": asdict(mesh),
            "placement": [p.to_json() for p in replica.placements],
            "attempt": state.attempt,
            "versions": {"rtrain": VERSION, "python": platform.python_version()},
            "saved_at": time.time(),
        }
        save(folders, state.step, replica.chunks(), meta)
        if world.leads:
            folders.prune(run.checkpoint.keep, {state.best_step} if state.best_step is not None else set())

    def evaluate() -> dict[str, float]:
        return measure(replica, _scan(run, dataset, "valid", world), run.metrics)

    _write_placement(folder, mesh, world, replica.placements, run)
    batches = iter(reader)
    replica.restore_rng()
    began, steps_before = time.perf_counter(), state.step
    try:
        fit(run, state, replica, batches, callbacks, evaluate=evaluate, save=keep, watch=watch)
    finally:
        reader.close()
        for callback in callbacks:
            callback.close()
    wall_s = time.perf_counter() - began
    breakdown = watch.breakdown()
    breakdown["other"] = max(0.0, wall_s - sum(breakdown.values()))

    best_step = state.best_step if state.best_step is not None else state.step
    del replica
    best = Stored(folders.of(best_step), best_step)
    judged = Replica(run, mesh, world, stored=best, training=False)
    test = measure(judged, _scan(run, dataset, "test", world), run.metrics)
    _record_predictions(run, dataset, judged, folder)
    peaks: list[int] = [0] * world.size
    dist.all_gather_object(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    trained = (state.step - steps_before) * run.global_batch
    return Outcome(
        steps=state.step,
        best_step=best_step,
        world_size=world.size,
        attempts=state.attempt,
        valid=state.best,
        test=test,
        breakdown=breakdown,
        examples_per_s=trained / wall_s if trained else 0.0,
        peak_bytes_per_rank=peaks,
        stop=state.stop,
        checkpoint=best.uri,
    )


def _begin_attempt(folder: Folder, world: World) -> int:
    """The number of this attempt of the run, counted in its folder; the same on every rank."""
    number = [0]
    if world.leads:
        number = [(folder.read_json(ATTEMPT)["attempt"] if folder.exists(ATTEMPT) else 0) + 1]
        folder.write_json(ATTEMPT, {"attempt": number[0]})
    dist.broadcast_object_list(number, src=0)
    return number[0]


def _agree_on_checkpoint(folders: CheckpointFolders, world: World) -> tuple[Stored | None, list[str]]:
    """Rank 0 finds the newest intact checkpoint; all ranks open that one."""
    said: list[Any] = [None, [], None]
    if world.leads:
        try:
            found, problems = newest(folders)
            said = [found.step if found else None, problems, None]
        except OSError as error:
            said = [None, [], f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(said, src=0)
    step, problems, broken = said
    if broken:
        raise RunFailed(f"checkpoints of {folders.root.uri}: cannot be read: {broken}")
    return (None if step is None else Stored(folders.of(step), step)), problems


def _scan(run: Run, dataset: Dataset, split: str, world: World) -> Any:
    return dataset.scan(split, global_batch=run.evaluation.batch, rank=world.rank, world_size=world.size)


def _leading_callbacks(
    run: Run,
    state: State,
    folder: Folder,
    placed: tuple[TablePlacement, ...],
    mesh: Mesh,
    problems: list[str],
) -> list[Callback]:
    history = History(folder, resume_step=state.step)
    for problem in problems:
        history.event(state.step, f"{problem}. Resuming from step {state.step}")
    trackers = open_trackers(
        run.tracking,
        run_name=run.name,
        folder=run.folder,
        config=config.flatten(run),
        attempt=state.attempt,
        resume_step=state.step,
    )
    return [history, TrackerCalls(trackers)]


class TrackerCalls(Callback):
    """Hands the loop's points to the trackers."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers
        self.finished = False

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """A training point."""
        if point is not None:
            values = {"train/loss": point.loss, "train/examples_per_s": point.examples_per_s, "train/lr": point.lr}
            self._log(state.step, values)

    def evaluated(self, state: State, values: dict[str, float] | Any) -> None:
        """A validation point."""
        self._log(state.step, {f"valid/{k}": v for k, v in values.items()})

    def fit_end(self, state: State) -> None:
        """The summary."""
        self.finished = True
        for tracker in self.trackers:
            tracker.finish({f"best/{k}": v for k, v in state.best.items()})

    def close(self) -> None:
        """Flush what an attempt that failed has logged."""
        if not self.finished:
            for tracker in self.trackers:
                tracker.close()

    def _log(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)


def _write_placement(folder: Folder, mesh: Mesh, world: World, placed: tuple[TablePlacement, ...], run: Run) -> None:
    """placement.json: who sits where, which table lies where."""
    me = {
        "rank": world.rank,
        "node": world.node,
        "pid": os.getpid(),
        "device": str(world.device),
        "coordinates": mesh.coordinates(world.rank),
    }
    ranks: list[Any] = [None] * world.size
    dist.all_gather_object(ranks, me)
    if world.leads:
        folder.write_json(
            "placement.json",
            {
                "world_size": world.size,
                "axes": asdict(mesh),
                "ranks": ranks,
                "tables": [p.to_json() for p in placed],
                "bytes_per_rank": table_bytes(run.sparse_optim, placed, world.size),
            },
        )


def _record_predictions(run: Run, dataset: Dataset, replica: Replica, folder: Folder) -> None:
    """predictions.json: the trainer's own probabilities for the first test rows, to hold a server against."""
    rows = min(run.handoff.rows, dataset.rows("test"))
    found: dict[int, float] = {}
    covered = 0
    for batch in _scan(run, dataset, "test", replica.world):
        covered += batch.global_rows
        probabilities = replica.predict(batch.to(replica.world.device)).cpu()
        found |= dict(zip(batch.row.tolist(), probabilities.tolist(), strict=True))
        if covered >= rows:
            break
    gathered: list[dict[int, float]] = [{}] * replica.world.size
    dist.all_gather_object(gathered, found)
    if replica.world.leads:
        everything = {row: p for part in gathered for row, p in part.items()}
        first = sorted(everything)[:rows]
        folder.write(
            PREDICTIONS, json.dumps({"rows": first, "predictions": [everything[r] for r in first]}).encode()
        )
