"""What a search has found, also while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rtrain import config
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import RunFailed
from rtrain.report.facts import TRIALS
from rtrain.run import Run
from rtrain.tuning.journal import Entry
from rtrain.tuning.pareto import front, ranked
from rtrain.tuning.space import Space, changes
from rtrain.tuning.words import spell


@dataclass(frozen=True)
class Trial:
    """One run of a search."""

    name: str
    changes: Mapping[str, Any]
    """Dotted key of the recipe -> value; of fields that counted."""
    metrics: Mapping[str, float]
    """Validation metrics of its best step, `parameters` and `seconds`; empty when there are none."""
    steps: int
    ended: str
    """finished, stopped (by the scheduler), failed, refused (it could not have run), or empty: it is under way."""
    error: str = ""


@dataclass(frozen=True)
class Tuned:
    """A search, as far as it has come."""

    objectives: Mapping[str, str]
    """Name -> "max" or "min"."""
    trials: tuple[Trial, ...]
    """Best first; those without a value last."""
    front: tuple[Trial, ...]
    """Finished trials that no other one beats in all objectives; of one objective the best."""
    run: Run
    """The recipe with the best trial's values, by the first objective, under a name of its own."""
    checkpoint: str
    """URI of the best trial's best checkpoint."""
    command: str
    """The command that trains the recipe with the best values."""
    report: str
    """URI of the page."""
    closed: str = ""
    """Why it ended before all trials had; empty when they have."""
    source: str = ""
    """Of a population's best the run and step whose weights it took over (`trial-0000@40`), where it did: its values
    are not those of its first steps."""

    @property
    def monitor(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    def __str__(self) -> str:
        keys = list(dict.fromkeys(key for trial in self.trials for key in trial.changes))
        head = ["trial", *keys, *self.objectives, "steps", ""]
        rows = [
            [
                trial.name,
                *(spell(trial.changes[k]) if k in trial.changes else "-" for k in keys),
                *(spell(trial.metrics[name]) if name in trial.metrics else "-" for name in self.objectives),
                str(trial.steps),
                _standing(trial),
            ]
            for trial in self.trials
        ]
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in [head, *rows]]
        if len(self.objectives) > 1:
            names = ", ".join(t.name for t in self.front) or "no trial has finished"
            lines += ["", f"not beaten in all of {', '.join(self.objectives)}: {names}"]
        if self.closed:
            lines += ["", f"ended before its trials had: {self.closed}. Start it again with more, and it goes on"]
        if self.source:
            lines += [
                "",
                f"The best went on from {self.source} with these values. The command trains with them from the start, "
                f"which is another run; what was found is its checkpoint, {self.checkpoint}",
            ]
        return "\n".join([*lines, "", f"report: {self.report}", f"best: {self.command}"])

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def to_json(self) -> dict[str, Any]:
        """The JSON line of `tune --json`."""
        return {
            "objectives": dict(self.objectives),
            "trials": [
                {
                    "name": t.name,
                    "changes": {key: storable_or_same(value) for key, value in t.changes.items()},
                    "metrics": dict(t.metrics),
                    "steps": t.steps,
                    "ended": t.ended,
                    "error": t.error,
                }
                for t in self.trials
            ],
            "front": [t.name for t in self.front],
            "best": {key: storable_or_same(value) for key, value in self.trials[0].changes.items()},
            "checkpoint": self.checkpoint,
            "source": self.source,
            "command": self.command,
            "report": self.report,
            "closed": self.closed,
        }


def storable_or_same(value: Any) -> Any:
    """What JSON holds as it is, also a list of such; of the rest the Python expression."""
    if isinstance(value, tuple) and all(isinstance(v, bool | int | float | str) for v in value):
        return list(value)
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def _standing(trial: Trial) -> str:
    if trial.error:
        return f"{trial.ended}: {trial.error[:80]}"
    return {"finished": "", "": "under way"}.get(trial.ended, trial.ended)


def tuned(
    run: Run,
    space: Space,
    entries: Sequence[Entry],
    objectives: Mapping[str, str],
    *,
    command: str,
    report: str,
    closed: str,
) -> Tuned:
    """Put a search's entries together. `run`: the recipe's, with all that trials leave out.

    Raises:
        RunFailed: no trial came to an evaluation.
    """
    order = ranked(entries, objectives)
    if not order:
        first = next((f"; the first said: {entry.error}" for entry in entries if entry.error), "")
        why = f": {closed}" if closed else ""
        raise RunFailed(f"tune: no trial came to a value of {', '.join(objectives)}{why}{first}")
    order += [entry for entry in entries if entry not in order]
    trials = {entry.number: _trial(entry, space) for entry in order}
    best = order[0]
    folder = CheckpointFolders(f"{run.folder}/{TRIALS}/{best.run}")
    changed = changes(space, best.drawn)
    words = " ".join(f"--{key} {_word(value)}" for key, value in changed.items())
    return Tuned(
        objectives=dict(objectives),
        trials=tuple(trials.values()),
        front=tuple(trials[entry.number] for entry in front(order, objectives)),
        run=replace(config.override(run, changed), name=f"{run.name}-best"),
        checkpoint=folder.of(best.best_step if best.best_step is not None else best.step).uri,
        command=f"{command} --name {run.name}-best {words}",
        report=report,
        closed=closed,
        source=best.source,
    )


def _trial(entry: Entry, space: Space) -> Trial:
    return Trial(entry.name, changes(space, entry.drawn), entry.values, entry.step, entry.ended, entry.error)


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    return repr(value) if isinstance(value, float) else str(value)
