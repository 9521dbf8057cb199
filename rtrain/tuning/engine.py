"""Ray Tune, set up for a search: its controller steps the trials, the gate lets their runs on."""

import os
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher

from rtrain.errors import RtrainError, one_line
from rtrain.launch.manifest import Codes
from rtrain.launch.ray_train import ray_storage
from rtrain.launch.session import ray_session
from rtrain.storage import Folder
from rtrain.tuning.conductor import Conductor
from rtrain.tuning.gate import Allowance, Gate
from rtrain.tuning.journal import SPENT
from rtrain.tuning.latency import LATENCY
from rtrain.tuning.member import Train, trained
from rtrain.tuning.options import Population
from rtrain.tuning.schedulers import Turns, remember
from rtrain.tuning.trial import NEEDS, NUMBER, STEP, Trial
from rtrain.tuning.trials import needs_of

TRIAL_BYTES = 400 * 1024**2
"""Memory that a trial's own process, which only waits, reserves: Tune wants it to ask for something."""
AGAIN = 1
"""Times that a trial is tried again from its last checkpoint, beside the restarts of its own workers
(`faults.max_failures`)."""
NOTED_EVERY_S = 5.0
"""Seconds between two times that what was spent is written down; a driver that is killed forgets no more."""
ANSWER_S = 60.0
DRAIN_S = 300.0
"""Seconds for which the end waits for runs that were told to stop."""


def searched(conductor: Conductor, scheduler: TrialScheduler, train: Train | None = None) -> str:
    """Run all trials that the conductor gives; why it ended before they had, or nothing.

    `train`: what trains the run of one; none: rtrain's own.
    """
    asked = conductor.asked
    run, search = asked.run, asked.search
    train = train or partial(trained, timed=LATENCY in asked.objectives)
    # Ray's other way to print shows a table and a place in a folder that goes, whatever `verbose` says.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # One that the search closes before its first report has no metric to tell; what trials report is looked at before.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # What it knows is in the journal.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    # Of a trial that failed `_Teller` tells in a line, Tune by the traceback of its own calls.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    joins = bool(os.environ.get("RAY_ADDRESS")) or ray.is_initialized()
    concurrent = search.concurrent or (None if joins else 1)
    with ray_session(run.cluster, workers=run.cluster.workers * (concurrent or 1)):
        needs = needs_of(run)
        free = ray.available_resources()
        conductor.room = {k: need * concurrent if concurrent else free.get(k, 0.0) for k, need in needs.items()}
        most = concurrent or max(1, int(min(conductor.room[k] // need for k, need in needs.items())))
        gate = _gate(conductor, train)
        path, filesystem = ray_storage(run.folder)
        conductor.board.say(f"{search.trials} trials over {', '.join(f'{k} {d}' for k, d in asked.space.items())}")
        teller = _Teller(conductor, gate)
        proposer, fields = _proposer(conductor, scheduler)
        try:
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(Trial, gate=gate),
                    {"CPU": 0, "memory": TRIAL_BYTES},
                ),
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    max_concurrent_trials=most,
                    reuse_actors=False,
                    **proposer,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=path,
                    storage_filesystem=filesystem,
                    verbose=0,
                    callbacks=[teller],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
                    failure_config=tune.FailureConfig(max_failures=AGAIN),
                ),
                **fields,
            )
            tuner.fit()
        finally:
            _end(gate, teller)
            Folder(f"{run.folder}/ray").remove()
    return teller.closed or ("it was interrupted" if conductor.journal.open else "")


def _end(gate: Any, teller: "_Teller") -> None:
    """Wait until all runs have left between two intervals. A Ray that is gone must not hide why."""
    with suppress(ray.exceptions.RayError, RtrainError, TimeoutError):
        teller.settle()
        ray.get(gate.close.remote("the search has ended"), timeout=ANSWER_S)
        ray.get(gate.drained.remote(), timeout=DRAIN_S)
        ray.kill(gate)


def _gate(conductor: Conductor, train: Train) -> Any:
    search, spent = conductor.asked.search, conductor.journal.spent()
    workers_s = search.cost / search.price * 3600 if search.cost is not None and search.price is not None else None
    allowance = Allowance(
        seconds=search.hours * 3600 - spent["seconds"] if search.hours is not None else None,
        worker_seconds=workers_s - spent["worker_seconds"] if workers_s is not None else None,
        longest=spent["longest"],
    )
    actor = ray.remote(Gate).options(num_cpus=0, max_concurrency=10_000)  # coroutines that wait, not threads
    asked = conductor.asked
    about = ray.put((asked.run, dict(asked.space), Codes.here()))  # the gate hands it on and does not look into it
    return actor.remote(conductor.room, allowance, partial(Begun, [ray.put(train)], [about]))


def _task(train: Any, about: Any, gate: Any, trial: str, token: str, **what: Any) -> Any:
    """Imports what trains where it is done, and not where it is asked for."""
    from rtrain.tuning.member import run_trial

    return run_trial(train, about, gate, trial, token, **what)


class Begun:
    """A run that has been begun, as the gate sees it."""

    def __init__(self, train: list[Any], about: list[Any], *, trial: str, token: str, **what: Any):
        task = ray.remote(_task).options(num_cpus=0, max_retries=0)
        gate = ray.get_runtime_context().current_actor
        self._task = task.remote(train[0], about[0], gate, trial, token, **what)

    def ended(self) -> Awaitable[Mapping[str, Any]]:
        """As `gate.Started`."""
        return _awaited(self._task)

    def cancel(self) -> None:
        """As `gate.Started`: not by force, which would leave its workers' places taken."""
        ray.cancel(self._task, force=False)


async def _awaited(task: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = await task
    return found


class _Proposing(Searcher):
    """Tune asks the conductor for trials."""

    def __init__(self, conductor: Conductor, scheduler: TrialScheduler):
        metric, mode = next(iter(conductor.asked.objectives.items()))
        super().__init__(metric=metric, mode=mode)
        self._conductor, self._scheduler = conductor, scheduler

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as `_Teller`

    def suggest(self, trial_id: str) -> Any:
        """The following trial's config."""
        entry = self._conductor.following()
        if entry is None:
            return Searcher.FINISHED
        metric, mode = next(iter(self._conductor.asked.objectives.items()))
        remember(self._scheduler, trial_id, self._conductor.journal.points(entry), metric=metric, mode=mode)
        return self._conductor.tune_config(entry)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The conductor hears of it from `_Teller`, which knows why too."""

    def save(self, checkpoint_path: str) -> None:
        """What it knows is in the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored from Tune's own files."""


def _proposer(conductor: Conductor, scheduler: TrialScheduler) -> tuple[dict[str, Any], dict[str, Any]]:
    """Who proposes trials, and how many there are: fields of TuneConfig, and of Tuner."""
    asked = conductor.asked
    metric, mode = next(iter(asked.objectives.items()))
    for entry in conductor.journal.entries.values():
        if entry.ended:
            points = conductor.journal.points(entry)
            remember(scheduler, f"ended-{entry.number}", points, metric=metric, mode=mode)
    if not isinstance(asked.search.scheduler, Population):
        return {"search_alg": _Proposing(conductor, scheduler), "num_samples": asked.search.trials}, {}
    # A population's scheduler takes no searcher, so Tune itself is given the fields, and the values of each member.
    entries = list(iter(conductor.following, None))
    assert isinstance(scheduler, Turns)
    scheduler.go_on(max((point[STEP] for entry in entries for point in conductor.journal.points(entry)), default=0))
    members = [conductor.tune_config(entry) for entry in entries]
    fields = {key: tune.choice([member[key] for member in members]) for key in (NUMBER, NEEDS, *asked.space)}
    alone = BasicVariantGenerator(points_to_evaluate=members)
    return {"search_alg": alone, "num_samples": len(members)}, {"param_space": fields}


class _Teller(tune.Callback):
    """Tells the conductor what Tune sees."""

    def __init__(self, conductor: Conductor, gate: Any):
        self._conductor, self._gate = conductor, gate
        self._before = dict(conductor.journal.spent())
        self._numbers: dict[str, int] = {}
        self._noted = time.monotonic()
        self.closed = ""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks into a file that nobody reads

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its number is that of its first config: a population's member takes another one's."""
        self._numbers.setdefault(trial.trial_id, trial.config[NUMBER])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """A checkpoint of a trial."""
        self._conductor.reported(self._numbers[trial.trial_id], result)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Tune has looked around: now and then what was spent is written down."""
        if time.monotonic() - self._noted >= NOTED_EVERY_S:
            self._note()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Finished, stopped, or closed."""
        self._conductor.completed(self._numbers[trial.trial_id], trial.last_result)
        self._note()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Failed, and is tried again."""
        name = self._conductor.journal.entries[self._numbers[trial.trial_id]].name
        said = ray.get(self._gate.failure.remote(trial.trial_id), timeout=ANSWER_S)
        why = f" ({said[:200]})" if said else ""
        self._conductor.board.say(f"{name} failed{why}; it is tried once more, from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Failed for the last time; whatever its process left is ended."""
        self._gate.end.remote(trial.trial_id)
        said = ray.get(self._gate.failure.remote(trial.trial_id), timeout=ANSWER_S)  # Tune's own is a pickle in a file
        self._conductor.failed(self._numbers[trial.trial_id], said or "its process, which only waits, died")

    def settle(self) -> None:
        """At the end: what all of it took."""
        self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        try:
            state = ray.get(self._gate.state.remote(), timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            raise RtrainError(f"the search's gate has died ({one_line(error)}). Start it again to go on") from error
        self.closed = self._conductor.closed = self.closed or state["closed"]
        spent = {key: self._before[key] + state[key] for key in ("seconds", "worker_seconds")}
        spent["longest"] = state["longest"]
        self._conductor.journal.folder.write_json(SPENT, spent)
