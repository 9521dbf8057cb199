"""Ray Tune's schedulers, as a search asks for them, told of what an earlier start of it has seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.schedulers.trial_scheduler import TrialScheduler

from rtrain.data.cursor import batches_per_epoch
from rtrain.errors import ConfigError
from rtrain.run import Run
from rtrain.tuning.options import Asha, Median, Population, Scheduler
from rtrain.tuning.space import Space
from rtrain.tuning.trial import STEP

FIXED = ("cluster", "model", "data")
"""Of the config: what weights that are taken over depend on."""
Points = Sequence[Mapping[str, Any]]


def scheduler_of(
    scheduler: Scheduler | None, run: Run, rows: int, space: Space, *, metric: str, mode: str, seed: int
) -> TrialScheduler:
    """A new one. `rows`: of the training split.

    Raises:
        ConfigError: evaluations that do not come by steps, or not where a population meets.
    """
    common = {"time_attr": STEP, "metric": metric, "mode": mode}
    total = run.total_steps(rows)
    every = run.evaluation.every.limit(rows, batches_per_epoch(rows, run.global_batch))
    if scheduler is not None and every is None:
        raise ConfigError(
            f"search.scheduler: {type(scheduler).__name__} compares trials at equal steps, but evaluation.every is "
            f"{run.evaluation.every.seconds:g} seconds. Give evaluation.every.steps, or leave the scheduler out"
        )
    match scheduler:
        case Asha(grace=grace, factor=factor):
            # No rung at the end: who comes there has finished, and is not stopped.
            return AsyncHyperBandScheduler(
                **common, grace_period=_grace(grace, every, total), reduction_factor=factor, max_t=total + 1,
                stop_last_trials=False,
            )  # fmt: skip
        case Median(grace=grace, least=least):
            # It would have a trial wait at each report as long as others have not begun, by ending its run.
            return MedianStoppingRule(
                **common, grace_period=_grace(grace, every, total), min_samples_required=least, min_time_slice=10**12
            )
        case Population():
            return _population(scheduler, run, total, space, common, seed)
    return FIFOScheduler()


def _grace(asked: int | None, every: int | None, total: int) -> int:
    """Steps that each trial gets; without a number those of its first evaluation."""
    if asked is not None and asked > total:
        raise ConfigError(f"search.scheduler.grace: {asked} steps are more than the {total} that a trial has")
    assert every is not None
    if every > total:
        raise ConfigError(
            f"search.scheduler: trials are compared at evaluations, of which the first comes after {every} steps, but "
            f"a trial has {total}. Lower evaluation.every (--evaluation.every.steps)"
        )
    return asked or every


def _population(
    asked: Population, run: Run, total: int, space: Space, common: Mapping[str, str], seed: int
) -> TrialScheduler:
    each = run.evaluation.every.steps
    if each is None or asked.every % each:
        spelled = f"every {each} steps" if each else "not by steps"
        raise ConfigError(
            f"search.scheduler.every: a population meets at evaluations, which come {spelled}. Set "
            f"--evaluation.every.steps to a divisor of {asked.every}"
        )
    if asked.every >= total:
        raise ConfigError(f"search.scheduler.every: {asked.every} steps, but a trial has no more than {total}")
    for key, domain in space.items():
        if domain.given is not None:
            raise ConfigError(f"space: {key} counts only at times; the members of a population change all fields")
        if key.startswith(FIXED):
            raise ConfigError(
                f"space: {key} cannot change within a population, whose members take each other's weights"
            )
    import random

    random.seed(seed)  # PopulationBasedTraining draws by this module's own state

    def inside(config: dict[str, Any]) -> dict[str, Any]:
        """A changed value may lie outside of its domain."""
        for key, domain in space.items():
            if domain.kind != "choice":
                low, high = domain.values
                value = min(max(config[key], low), high)
                config[key] = round(value) if domain.kind == "integers" else value
        return config

    return Turns(
        **common,
        perturbation_interval=asked.every,
        hyperparam_mutations={key: _mutation(domain) for key, domain in space.items()},
        quantile_fraction=asked.share,
        resample_probability=asked.anew,
        custom_explore_fn=inside,
        log_config=False,
        synch=True,
    )


class Turns(PopulationBasedTraining):
    """Ray Tune's, also for members that have been under way in an earlier start and are at several steps."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._done = 0

    def go_on(self, furthest: int) -> None:
        """Before any member is there; `furthest`: step of the one that has come farthest.

        Nobody trains beyond a turn before all have met there, so the last turn that was done is the last one before
        that step. Without this, members behind would run past the others, who would wait for them for ever.
        """
        every = self._perturbation_interval
        self._done = max(0, furthest - 1) // every * every
        self._next_perturbation_sync = self._done + every

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As Tune's."""
        super().on_trial_add(tune_controller, trial)
        self._trial_state[trial].last_perturbation_time = self._done


def _mutation(domain: Any) -> Any:
    match domain.kind:
        case "choice":
            return list(domain.positions)
        case "integers":
            return tune.randint(domain.values[0], domain.values[1] + 1)
        case "loguniform":
            return tune.loguniform(*domain.values)
    return tune.uniform(*domain.values)


def remember(scheduler: TrialScheduler, trial: str, points: Points, *, metric: str, mode: str) -> None:
    """Tell a scheduler what a trial reported to an earlier one, by its name in this start (of a population:
    `Turns.go_on`)."""
    if isinstance(scheduler, AsyncHyperBandScheduler):
        from types import SimpleNamespace

        for point in points:
            value = float(point[metric]) * (1 if mode == "max" else -1)
            scheduler._brackets[0].on_result(SimpleNamespace(trial_id=trial), point[STEP], value)
    if isinstance(scheduler, MedianStoppingRule) and points:
        scheduler._results[trial].extend(points)
