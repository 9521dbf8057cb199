"""Between Ray Tune, the sampler and the journal: which trial comes next, and what each ending means."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rtrain.errors import ConfigError, one_line
from rtrain.planning import plan
from rtrain.run import Run
from rtrain.tuning.board import Board, Point
from rtrain.tuning.journal import Entry, Journal
from rtrain.tuning.latency import LATENCY, refuse_latency
from rtrain.tuning.options import COST, Population, Search
from rtrain.tuning.proposals import Proposals
from rtrain.tuning.space import Drawn, Space, changes, storable
from rtrain.tuning.trial import NEEDS, NUMBER, STEP
from rtrain.tuning.trials import needs_of, parameters_of, run_of
from rtrain.tuning.words import ended_line

OTHER_OBJECTIVES = {"parameters": "min", "seconds": "min", COST: "min", LATENCY: "min"}
"""What can be weighed beside metrics: weights of the model with its tables, seconds of training, those of all its
workers at `search.price`, and the time in which the exported model answers."""


def objectives_of(run: Run, search: Search) -> dict[str, str]:
    """Name -> "max" or "min"; the first one orders trials where one order is needed.

    Raises:
        ConfigError: one that no trial reports.
    """
    metrics = {
        name: "max" if metric.higher_is_better else "min" for name, metric in run.named_metrics() if metric.monitored
    }
    known = metrics | OTHER_OBJECTIVES
    names = search.objectives or (run.evaluation.monitor,)
    for name in names:
        if name not in known:
            raise ConfigError(f"search.objectives: no trial reports {name!r}. They report {', '.join(known)}")
    if COST in names and search.price is None:
        raise ConfigError(f"search.objectives: {COST} needs search.price (--price), of one worker for an hour")
    if LATENCY in names:
        refuse_latency(run)
    return {name: known[name] for name in names}


@dataclass(frozen=True)
class Asked:
    """What the search is about."""

    run: Run
    space: Space
    search: Search
    objectives: Mapping[str, str]


class Conductor:
    """One search under way, in the driver's process."""

    def __init__(self, asked: Asked, journal: Journal, proposals: Proposals, board: Board):
        self.asked, self.journal, self.proposals, self.board = asked, journal, proposals, board
        self.resumed = list(journal.open)
        self.room: Mapping[str, float] = {}
        """What all trials together may take of the cluster, once that is known."""
        self.closed = ""
        """Why no further trial begins."""
        self.points: dict[int, Point] = {}
        """Newest report of each trial under way."""
        self._sizes: dict[int, tuple[int, int]] = {}  # weights and workers of each trial

    def following(self) -> Entry | None:
        """The next trial to run: first those that were under way, then new ones; none: there are no more."""
        if self.closed:
            return None
        if self.resumed:
            return self.resumed.pop(0)
        for number in range(self.asked.search.trials):
            if number in self.journal.entries:
                continue
            drawn = self.proposals.draw(number)
            if drawn is None:
                return None
            if (entry := self._admitted(number, drawn)) is not None:
                return entry
        return None

    def _admitted(self, number: int, drawn: Drawn) -> Entry | None:
        """Written down before it starts; none, and written down as refused, where it could not run."""
        spelled = {key: storable(value) for key, value in changes(self.asked.space, drawn).items()}
        entry = Entry(number=number, drawn=drawn, changes=spelled)
        try:
            run = run_of(self.asked.run, self.asked.space, entry)
            plan(run)
            run.data.open().refuse_rows()
            for kind, amount in needs_of(run).items():
                if amount > self.room.get(kind, 0.0):
                    raise ConfigError(f"it needs {amount:g} {kind}s, but the search has {self.room.get(kind, 0.0):g}")
        except ConfigError as error:
            self.end(replace(entry, ended="refused", error=one_line(error)))
            return None
        return self.journal.write(entry)

    def tune_config(self, entry: Entry) -> dict[str, Any]:
        """What Tune holds of a trial."""
        run = run_of(self.asked.run, self.asked.space, entry)
        needs = {**needs_of(run), "workers": run.cluster.workers}
        return {NUMBER: entry.number, NEEDS: json.dumps(needs), **entry.drawn}

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial has come to a checkpoint."""
        self.points[number] = Point(int(result.get(STEP, 0)), self._best_of(self.journal.entries[number], result))
        self.board.show(list(self.journal.entries.values()), self.points)

    def completed(self, number: int, result: Mapping[str, Any]) -> None:
        """Tune is done with a trial: it came to its end, was stopped, or the search is over before it was."""
        entry = self.journal.again(number)
        step = int(result.get(STEP, 0))
        best = self._best_of(entry, result) if step else {}
        entry = replace(entry, step=step, best_step=result.get("best_step"), values=best)
        if result.get("closed"):  # it stays open: a start with more to spend goes on with it
            if step:
                self.journal.write(entry)
            return
        self.end(replace(entry, ended="finished" if result["finished"] else "stopped"))

    def failed(self, number: int, error: str) -> None:
        """A trial failed more often than it is tried again."""
        self.end(replace(self.journal.again(number), ended="failed", error=error))

    def end(self, entry: Entry) -> None:
        """Write down how a trial ended, and tell the sampler and the user."""
        entry = self.journal.write(entry)
        if not isinstance(self.asked.search.scheduler, Population):
            self.proposals.tell(entry, self.journal.points(entry))
        entries = list(self.journal.entries.values())
        self.board.say(ended_line(entry, self.asked.objectives, entries, self.asked.search.trials))
        self.board.show(entries, self.points)

    def _best_of(self, entry: Entry, result: Mapping[str, Any]) -> dict[str, float]:
        """What a trial's best checkpoint so far scored, as its run judges it, and what else can be weighed."""
        best = {name: float(value) for name, value in (result.get("best") or {}).items()}
        if not best:
            return {}
        if entry.number not in self._sizes:
            run = run_of(self.asked.run, self.asked.space, entry)
            self._sizes[entry.number] = parameters_of(run), run.cluster.workers
        parameters, workers = self._sizes[entry.number]
        best["parameters"] = float(parameters)
        if "seconds" in result:
            best["seconds"] = float(result["seconds"])
            if self.asked.search.price is not None:
                best[COST] = best["seconds"] / 3600 * workers * self.asked.search.price
        return best
