"""One run under failures, as a discrete-event simulation (SimPy): events are failures and returns of nodes alone.

How many checkpoints lie between two of them is arithmetic, so weeks of thousands of nodes take milliseconds.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from rtrain.goodput.scenario import Scenario

WAITING, RESTARTING, TRAINING, SAVING = "waiting", "restarting", "training", "saving"
FAILED, ANNOUNCED, GROW = "failed", "announced", "grow"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the wall time of one simulated run went; the seconds add up to all of it."""

    useful_s: float
    """Trained once and for all, in seconds of all nodes."""
    lost_s: float
    """Trained, and trained again after an interruption."""
    checkpoint_s: float
    """Standing still for a checkpoint."""
    restart_s: float
    waiting_s: float
    """Too few nodes to train."""
    shrunk_s: float
    """What the nodes that an elastic run went on without would have trained."""
    interruptions: int
    node_s: float
    """Seconds of all nodes and spares that were there, which are paid."""

    @property
    def wall_s(self) -> float:
        """All of the time."""
        return self.useful_s + self.lost_s + self.checkpoint_s + self.restart_s + self.waiting_s + self.shrunk_s

    @property
    def goodput(self) -> float:
        """Useful training time over wall time, 0 to 1."""
        return self.useful_s / self.wall_s


def simulate(scenario: Scenario, *, every_s: float, seed: int) -> Outcome:
    """A run that takes a checkpoint after every `every_s` seconds of training.

    The same seed gives the same failures whatever `every_s` is, so that intervals are compared on equal terms.
    The run ends after `scenario.days`; what it has trained by then counts, committed or not.

    Raises:
        ConfigError: an interval that the run cannot keep.
    """
    scenario.check_interval(every_s)
    return _Simulation(scenario, every_s, seed).run()


class _Simulation:
    """The state of one run: how many nodes are up, how many of them train, and what was done so far."""

    def __init__(self, scenario: Scenario, every_s: float, seed: int):
        self.scenario, self.every_s = scenario, every_s
        self.env = simpy.Environment()
        self.draw = random.Random(seed)
        self.up, self.active, self.interruptions = scenario.machines, 0, 0
        self.node_s = self.counted_at = 0.0
        self.phase, self.since = WAITING, 0.0
        self.spent = dict.fromkeys((WAITING, RESTARTING, SAVING), 0.0)
        self.useful_s = self.lost_s = self.shrunk_s = 0.0
        self.uncommitted_s = 0.0
        self.returned = self.env.event()
        self.training = self.env.process(self._train())
        self.env.process(self._interrupt())

    def run(self) -> Outcome:
        self.env.run(until=self.scenario.horizon_s)
        self._enter(WAITING)
        self._count(0)
        return Outcome(
            useful_s=self.useful_s + self.uncommitted_s,
            lost_s=self.lost_s,
            checkpoint_s=self.spent[SAVING],
            restart_s=self.spent[RESTARTING],
            waiting_s=self.spent[WAITING],
            shrunk_s=self.shrunk_s,
            interruptions=self.interruptions,
            node_s=self.node_s,
        )

    def _train(self) -> Generator[Any, Any, None]:
        """Wait for nodes, restart, train until something comes; save first what can be saved; and again."""
        scenario, restart_s = self.scenario, 0.0
        least = 1 if scenario.elastic else scenario.nodes
        while True:
            self._enter(WAITING)
            while self.up < least:
                self.returned = self.env.event()
                yield self.returned
            self.active = min(self.up, scenario.nodes)
            try:
                self._enter(RESTARTING)
                yield self.env.timeout(restart_s)
                self._enter(TRAINING)
                if not self._growth_pays():
                    yield self.env.event()  # which never comes: an interruption ends the wait
                cause = GROW
            except simpy.Interrupt as interruption:
                cause = str(interruption.cause)
            if cause != FAILED and self.phase == TRAINING:
                yield from self._save()
            self._enter(WAITING)
            self.lost_s += self.uncommitted_s
            self.uncommitted_s, self.active, restart_s = 0.0, 0, scenario.restart_s

    def _save(self) -> Generator[Any, Any, None]:
        """A checkpoint for which training stops until it is committed; a failure meanwhile makes it worth nothing."""
        self._enter(SAVING)
        try:
            yield self.env.timeout(self.scenario.checkpoint_s + self.scenario.write_s)
        except simpy.Interrupt:
            return
        self.useful_s += self.uncommitted_s
        self.uncommitted_s = 0.0

    def _interrupt(self) -> Generator[Any, Any, None]:
        """Failures and preemptions. They strike all places at the full rate; what strikes an empty one is nothing.

        So the draws do not depend on what the run does, and the gaps of those that count have the rate of those up.
        """
        scenario = self.scenario
        rate = scenario.machines * scenario.interruptions_per_s
        while rate:
            yield self.env.timeout(self.draw.expovariate(rate))
            place, kind = self.draw.random() * scenario.machines, self.draw.random()
            if place >= self.up:
                continue
            preempted = kind * scenario.interruptions_per_s < scenario.preemptions_per_s
            announced = preempted and scenario.saves_on_notice
            self._count(-1)
            self.env.process(self._come_back(scenario.return_s if preempted else scenario.repair_s))
            # The first `active` places are those that train. A notice while the run is saving changes nothing.
            if place < self.active:
                self.interruptions += 1
                if not (announced and self.phase == SAVING):
                    self.training.interrupt(ANNOUNCED if announced else FAILED)

    def _come_back(self, after_s: float) -> Generator[Any, Any, None]:
        yield self.env.timeout(after_s)
        self._count(+1)
        if not self.returned.triggered:
            self.returned.succeed()
        if self.phase == TRAINING and self._growth_pays():
            self.training.interrupt(GROW)

    def _growth_pays(self) -> bool:
        """Whether idle nodes would train more, until the next interruption is due, than their joining costs."""
        scenario = self.scenario
        idle = min(self.up, scenario.nodes) - self.active
        cost_s = scenario.checkpoint_s + scenario.write_s + scenario.restart_s
        return idle > 0 and idle > cost_s * self.active * scenario.interruptions_per_s * self.active

    def _count(self, change: int) -> None:
        """Nodes that are up from now on."""
        self.node_s += self.up * (self.env.now - self.counted_at)
        self.counted_at = self.env.now
        self.up += change

    def _enter(self, phase: str) -> None:
        """Book the phase that ends now, and begin another."""
        lasted, before = self.env.now - self.since, self.phase
        self.phase, self.since = phase, self.env.now
        if before != TRAINING:
            self.spent[before] += lasted
            return
        period = self.every_s + self.scenario.checkpoint_s
        whole, rest = divmod(lasted, period)
        trained = whole * self.every_s + min(rest, self.every_s)
        committed = max((lasted - self.scenario.write_s) // period, 0.0) * self.every_s
        speed = self.active / self.scenario.nodes
        self.spent[SAVING] += lasted - trained
        self.shrunk_s += trained * (1 - speed)
        self.useful_s += committed * speed
        self.uncommitted_s += (trained - committed) * speed
