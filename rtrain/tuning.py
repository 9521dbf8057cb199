"""Search a recipe's fields with Ray Tune; each trial is itself a distributed run with its own folder."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rtrain import config, notices
from rtrain.api import absolute
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import ConfigError, RtrainError, RunFailed, one_line
from rtrain.planning import plan
from rtrain.run import Handoff, Run
from rtrain.storage import check_writable
from rtrain.tracking import Tracking

TRIAL_BYTES = 400 * 1024**2
"""Memory that a trial's own process, which only waits, reserves."""


@dataclass(frozen=True)
class Domain:
    """Values that a field may take in a search."""

    kind: Literal["loguniform", "uniform", "choice"]
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.values))})"


def loguniform(low: float, high: float) -> Domain:
    """Uniform in the logarithm between `low` and `high`."""
    if not 0 < low < high:
        raise ConfigError(f"loguniform({low}, {high}): needs 0 < low < high")
    return Domain("loguniform", (low, high))


def uniform(low: float, high: float) -> Domain:
    """Uniform between `low` and `high`."""
    if not low < high:
        raise ConfigError(f"uniform({low}, {high}): needs low < high")
    return Domain("uniform", (low, high))


def choice(*values: Any) -> Domain:
    """One of `values`."""
    if not values:
        raise ConfigError("choice(): needs at least one value")
    return Domain("choice", values)


@dataclass(frozen=True)
class Trial:
    """One run of a search."""

    name: str
    changes: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Best validation metrics; empty when the trial failed."""
    steps: int
    error: str = ""


@dataclass(frozen=True)
class Tuned:
    """A finished search."""

    monitor: str
    trials: tuple[Trial, ...]
    """Best first; failed ones last."""
    run: Run
    """The recipe with the best trial's values."""
    checkpoint: str
    """URI of the best trial's best checkpoint."""
    command: str
    """The command that trains the recipe with the best values."""

    def __str__(self) -> str:
        keys = list(self.trials[0].changes)
        head = ["trial", *keys, self.monitor, "steps"]
        rows = [
            [t.name, *(_spell(t.changes[k]) for k in keys), _spell(t.metrics.get(self.monitor)), str(t.steps)]
            if not t.error
            else [t.name, *(_spell(t.changes[k]) for k in keys), "failed", t.error[:80]]
            for t in self.trials
        ]
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in [head, *rows]]
        return "\n".join([*lines, "", f"best: {self.command}"])

    def to_json(self) -> dict[str, Any]:
        """The JSON line of `tune --json`."""
        return {
            "monitor": self.monitor,
            "trials": [
                {
                    "name": t.name,
                    "changes": dict(t.changes),
                    "metrics": dict(t.metrics),
                    "steps": t.steps,
                    "error": t.error,
                }
                for t in self.trials
            ],
            "best": dict(self.trials[0].changes),
            "checkpoint": self.checkpoint,
            "command": self.command,
        }


def _spell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@notices.aside()
def tune(run: Run, space: Mapping[str, Domain], *, trials: int = 8, command: str = "train") -> Tuned:
    """Search `space` (dotted key -> domain) for the best `evaluation.monitor`.

    Trials run one after the other, each with all of `cluster.workers`, under
    `{storage}/{name}/trials/`; Optuna's TPE proposes the values.

    Raises:
        ConfigError: an empty space, or a key that the run does not have.
        RunFailed: no trial finished.
    """
    from ray import tune as ray_tune
    from ray.tune.search.optuna import OptunaSearch

    from rtrain.launch.ray_train import ray_storage
    from rtrain.launch.session import ray_session

    if not space:
        raise ConfigError("tune: the recipe gives no search space. Pass main(..., space={'optim.lr': loguniform(...)})")
    if trials < 1:
        raise ConfigError(f"tune: trials must be at least 1, got {trials}")
    run = replace(absolute(run), handoff=Handoff(export=False), tracking=Tracking(to=()))
    flat = config.flatten(run)
    for key, domain in space.items():
        config.override(run, {key: domain.values[0]})
        assert key in flat, key
    plan(run)
    check_writable(run.storage)
    run.data.open().refuse_rows()
    monitor = run.evaluation.monitor
    mode = "max" if run.monitored.higher_is_better else "min"
    makers = {"loguniform": ray_tune.loguniform, "uniform": ray_tune.uniform}
    searched = {
        key: ray_tune.choice(list(d.values)) if d.kind == "choice" else makers[d.kind](*d.values)
        for key, d in space.items()
    }
    # Ray's other way to print shows a table and a place in a folder that goes, whatever `verbose` says.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with ray_session(run.cluster):
        path, filesystem = ray_storage(run.folder)
        tuner = ray_tune.Tuner(
            # The trial itself only waits for its workers, which take the CPUs; Tune wants it to ask for something.
            ray_tune.with_resources(ray_tune.with_parameters(_trial, run=run), {"CPU": 0, "memory": TRIAL_BYTES}),
            param_space=searched,
            tune_config=ray_tune.TuneConfig(
                metric=monitor,
                mode=mode,
                num_samples=trials,
                max_concurrent_trials=1,
                search_alg=OptunaSearch(seed=run.seed),
            ),
            run_config=ray_tune.RunConfig(
                name="tune",
                storage_path=path,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[_told(run, trials, mode)],
            ),
        )
        print(f"{run.name}: {trials} trials over {', '.join(f'{k} {d}' for k, d in space.items())}", file=sys.stderr)
        grid = tuner.fit()
        found = [_collect(result, list(space), run) for result in grid]
    found.sort(key=lambda t: _rank(t, monitor, mode))
    best = found[0]
    if best.error:
        raise RunFailed(f"tune: no trial finished; the first said: {best.error}")
    values = " ".join(f"--{k} {_exact(v)}" for k, v in best.changes.items())
    best_run = config.override(run, dict(best.changes))
    folder = CheckpointFolders(f"{run.folder}/trials/{best.name}")
    return Tuned(
        monitor=monitor,
        trials=tuple(found),
        run=best_run,
        checkpoint=folder.of(int(best.metrics["best_step"])).uri,
        command=f"{command} {values}",
    )


def _told(run: Run, trials: int, mode: str) -> Any:
    """Says how each trial ended, as it does: a search takes as long as all of them."""
    from ray.tune import Callback

    class Told(Callback):
        ended: int = 0
        best: float | None = None

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            value = trial.last_result.get(run.evaluation.monitor)
            if value is not None and (self.best is None or (value > self.best) == (mode == "max")):
                self.best = value
            self._say(trial, f"{run.evaluation.monitor} {_spell(value)} (best {_spell(self.best)})")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._say(trial, "failed")

        def _say(self, trial: Any, how: str) -> None:
            self.ended += 1
            changes = ", ".join(f"{key} {_spell(value)}" for key, value in trial.config.items())
            print(f"{run.name}: trial {self.ended} of {trials}: {how}, with {changes}", file=sys.stderr, flush=True)

    return Told()


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _rank(trial: Trial, metric: str, mode: str) -> tuple[bool, float]:
    value = trial.metrics.get(metric, 0.0)
    return bool(trial.error), -value if mode == "max" else value


def _trial(changes: dict[str, Any], *, run: Run) -> None:
    """One trial: a whole distributed run, reported to Tune at its checkpoints and at its end."""
    from ray import tune as ray_tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from rtrain.launch.ray_train import train_on_ray

    class Reporter(TuneReportCallback):
        """Passes on what has the metric: Tune takes a checkpoint before the first evaluation for a mistake."""

        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            if run.evaluation.monitor in metrics[0]:
                super().after_report(run_context, metrics, checkpoint)

    name = ray_tune.get_context().get_trial_id()
    trial = replace(config.override(run, changes), name=name, storage=f"{run.folder}/trials")
    try:
        outcome = train_on_ray(trial, callbacks=[Reporter()])
    except RtrainError as error:
        raise RuntimeError(one_line(error)) from None
    ray_tune.report({**outcome.valid, "best_step": outcome.best_step, "step": outcome.steps, "trial": name})


def _collect(result: Any, keys: list[str], run: Run) -> Trial:
    values = result.metrics or {}
    changes = {k: (result.config or {}).get(k) for k in keys}
    if result.error is not None or "trial" not in values:
        reason = " ".join(str(result.error).split()) if result.error else "it ended without a result"
        return Trial(values.get("trial_id", "?"), changes, {}, 0, reason.rpartition("RuntimeError: ")[2][:300])
    metrics = {m.name: float(values[m.name]) for m in run.metrics if m.name in values}
    return Trial(values["trial"], changes, {**metrics, "best_step": values["best_step"]}, int(values["step"]))
