"""What to try next: Optuna's samplers, asked trial by trial, and told how each ended.

Each draw is seeded by the search's seed and the trial's number, so a search that is killed and goes on proposes what
it would have, whenever its sampler had been told the same.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import islice
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from rtrain.errors import ConfigError
from rtrain.tuning.journal import Entry
from rtrain.tuning.options import Search
from rtrain.tuning.space import Drawn, Space, counts, draw, grid, ordered, storable


class Proposals:
    """A study without storage of its own: what it knows is told by the journal."""

    def __init__(self, space: Space, search: Search, objectives: Mapping[str, str], seed: int):
        """`objectives`: name -> "max" or "min"."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.search, self.seed = space, search, seed
        self.objectives = dict(objectives)
        both = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
        directions = [both[mode] for mode in self.objectives.values()]
        self.study = optuna.create_study(directions=directions, sampler=RandomSampler(seed=seed))
        self._asked: dict[int, optuna.Trial] = {}  # by the trial's number; the study's own are others

    def replay(self, entries: Sequence[Entry], points: Mapping[int, list[dict[str, Any]]]) -> None:
        """Tell the study of trials that are there already, in their order."""
        for entry in entries:
            self.study.enqueue_trial(dict(entry.drawn))
            trial = self.study.ask()
            draw(self.space, trial)
            self._asked[entry.number] = trial
            if entry.ended:
                self.tell(entry, points.get(entry.number, []))

    def draw(self, number: int) -> Drawn | None:
        """Of a trial of that number; none when a grid has no further one."""
        if self.search.sampler == "grid":
            found = next(islice(grid(self.space), number, None), None)
            if found is None:
                return None
            self.study.enqueue_trial(found)
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        self._asked[number] = trial
        return draw(self.space, trial)

    def tell(self, entry: Entry, points: Sequence[Mapping[str, Any]]) -> None:
        """How a trial ended; `points`: what it reported on the way."""
        trial = self._asked.pop(entry.number)
        values = [entry.values[name] for name in self.objectives if name in entry.values]
        if entry.ended == "finished" and len(values) == len(self.objectives):
            self.study.tell(trial, values)
        elif entry.ended == "stopped" and len(self.objectives) == 1 and points:
            for point in points:
                trial.report(float(point[next(iter(self.objectives))]), int(point["step"]))
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def warm(self, entries: Sequence[Entry]) -> int:
        """Tell the study of an earlier search's finished trials; how many there were that this space can tell.

        Raises:
            ConfigError: none of them.
        """
        told = 0
        for entry in entries:
            values = [entry.values[name] for name in self.objectives if name in entry.values]
            drawn = _as_drawn(entry.changes, self.space)
            if entry.ended != "finished" or len(values) < len(self.objectives) or drawn is None:
                continue
            self.study.enqueue_trial(drawn)
            trial = self.study.ask()
            draw(self.space, trial)
            self.study.tell(trial, values)
            told += 1
        if not told:
            raise ConfigError(
                "tune: none of the earlier search's finished trials lies in this space with these metrics"
            )
        return told

    def importances(self) -> dict[str, float]:
        """Share of the differences that each field explains (fANOVA, Hutter et al., 2014); empty below 4 trials."""
        done = [t for t in self.study.trials if t.state == TrialState.COMPLETE]
        if len(done) < 4 or len(self.objectives) > 1:
            return {}
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        try:
            return get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=self.seed))
        except (ValueError, RuntimeError, ZeroDivisionError):  # all values equal, or a field that only some have
            return {}

    def _sampler(self, number: int) -> BaseSampler:
        seed = int.from_bytes(sha256(f"{self.seed} {number}".encode()).digest()[:4], "big")
        match self.search.sampler:
            case "tpe":
                alone = max(4, min(10, self.search.trials // 3))  # drawn by chance, before it has learnt anything
                return TPESampler(seed=seed, n_startup_trials=alone, multivariate=True, group=True, constant_liar=True)
            case "gp":
                return GPSampler(seed=seed)
            case _:
                return RandomSampler(seed=seed)


def _as_drawn(changes: Mapping[str, Any], space: Space) -> dict[str, float] | None:
    """What an earlier trial changed, as this space would have drawn it; none where it cannot."""
    found: dict[str, float] = {}
    for key, value in changes.items():
        domain = space.get(key)
        if domain is None:
            return None
        if domain.kind == "choice":
            spelled = [storable(v) for v in domain.values]
            if value not in spelled:
                return None
            found[key] = spelled.index(value)
        elif isinstance(value, int | float) and domain.values[0] <= value <= domain.values[1]:
            found[key] = value
        else:
            return None
    wanted = [key for key, domain in ordered(space) if counts(domain, found, space)]
    return found if set(wanted) == set(found) else None
