"""Many seeds at many checkpoint intervals, beside the closed form: how much of the time is useful, and when to save."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean

import numpy as np

from rtrain.errors import ConfigError
from rtrain.goodput.closed_form import daly_s, goodput, interruption_s, losing_s, young_s
from rtrain.goodput.scenario import HOUR_S, Scenario
from rtrain.goodput.simulation import Outcome, simulate

OCTAVES, STEPS_PER_OCTAVE = 3, 4
"""Intervals from Daly's / 8 to Daly's * 8, each 19 % more than the one before."""
MOST_EVENTS = 5_000_000
"""Interruptions that may be simulated in all: about a minute or two."""
AS_GOOD = 0.001
"""Goodput below the best one's that makes no difference."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One checkpoint interval over all seeds."""

    every_s: float
    mean: float
    low: float
    """10 % of the seeds are below."""
    median: float
    high: float
    """10 % of the seeds are above."""
    closed_form: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was found. Shares are of wall time, means over seeds."""

    scenario: Scenario
    seeds: int
    chosen: Point
    """At the interval that was asked for, else at the best."""
    points: tuple[Point, ...]
    """By rising interval; empty where no work is ever lost, so that no interval is best."""
    best: Point | None
    as_good_s: tuple[float, float] | None
    """Intervals whose mean is within AS_GOOD of the best one's: the shortest and the longest."""
    shares: dict[str, float]
    """useful, lost, checkpoint, restart, waiting, shrunk; together 1."""
    interruptions: float
    """Of a run, on average."""
    interruption_s: float
    young_s: float
    daly_s: float
    cost: float | None
    """Of a run, on average, in the currency of the price."""
    cost_per_useful_device_hour: float | None

    def to_json(self) -> dict[str, object]:
        """Plain lists and dicts; an infinite number is null."""
        return {key: _finite(value) for key, value in asdict(self).items()}


def study(scenario: Scenario, *, every_s: float | None = None, seeds: int = 20) -> Study:
    """Simulate `scenario` at each interval with the same seeds, and at `every_s`, else at the best of them.

    Raises:
        ConfigError: no seeds, an interval that the run cannot keep, no interval where none is best, or more
            interruptions than can be simulated in a minute or two.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds: must be at least 1, got {seeds}. Give how many runs to simulate, as 20")
    if every_s is not None:
        scenario.check_interval(every_s)
    tried = _intervals(scenario)
    if every_s is None and not tried:
        raise ConfigError(
            "--checkpoint-every-s: auto, but no work is ever lost here, so no interval is best: fewer checkpoints are "
            "always better. Give seconds, or a finite --mtbf-hours"
        )
    events = scenario.machines * scenario.interruptions_per_s * scenario.horizon_s * seeds * (len(tried) + 1)
    if events > MOST_EVENTS:
        raise ConfigError(
            f"--seeds: {seeds} runs of {scenario.days:g} days at {len(tried) + 1} intervals have {events:.2g} "
            f"interruptions, more than {MOST_EVENTS:.2g}, which take minutes. Lower --seeds or --days"
        )
    measured = {every: _outcomes(scenario, every, seeds) for every in tried}
    points = tuple(_point(scenario, every, outcomes) for every, outcomes in measured.items())
    best = max(points, key=lambda point: point.mean) if points else None
    if every_s is None:
        assert best is not None
        outcomes, chosen = measured[best.every_s], best
    else:
        outcomes = _outcomes(scenario, every_s, seeds)
        chosen = _point(scenario, every_s, outcomes)
    return _study(scenario, outcomes, chosen, points, best)


def _study(
    scenario: Scenario, outcomes: Sequence[Outcome], chosen: Point, points: tuple[Point, ...], best: Point | None
) -> Study:
    wall_s = scenario.horizon_s
    kinds = ("useful", "lost", "checkpoint", "restart", "waiting", "shrunk")
    shares = {kind: mean(getattr(outcome, f"{kind}_s") for outcome in outcomes) / wall_s for kind in kinds}
    good = [p.every_s for p in points if best and p.mean >= best.mean - AS_GOOD]
    price, cost, useful_hours = scenario.price_per_device_hour, None, 0.0
    if price is not None:
        cost = mean(outcome.node_s for outcome in outcomes) / HOUR_S * scenario.devices_per_node * price
        useful_hours = shares["useful"] * wall_s / HOUR_S * scenario.nodes * scenario.devices_per_node
    return Study(
        scenario=scenario,
        seeds=len(outcomes),
        chosen=chosen,
        points=points,
        best=best,
        as_good_s=(min(good), max(good)) if good else None,
        shares=shares,
        interruptions=mean(outcome.interruptions for outcome in outcomes),
        interruption_s=interruption_s(scenario),
        young_s=young_s(scenario),
        daly_s=daly_s(scenario),
        cost=cost,
        cost_per_useful_device_hour=cost / useful_hours if cost is not None and useful_hours else None,
    )


def _intervals(scenario: Scenario) -> list[float]:
    """Seconds of training around Daly's optimum, within what the run can keep; none: no work is ever lost."""
    middle = daly_s(scenario)
    if math.isinf(losing_s(scenario)):
        return []
    shortest, longest = scenario.write_s, scenario.horizon_s / 2
    steps = range(-OCTAVES * STEPS_PER_OCTAVE, OCTAVES * STEPS_PER_OCTAVE + 1)
    around = (middle * 2 ** (step / STEPS_PER_OCTAVE) for step in steps)
    return sorted({min(max(every, shortest), longest) for every in around})


def _outcomes(scenario: Scenario, every_s: float, seeds: int) -> list[Outcome]:
    return [simulate(scenario, every_s=every_s, seed=seed) for seed in range(seeds)]


def _point(scenario: Scenario, every_s: float, outcomes: Sequence[Outcome]) -> Point:
    found = [outcome.goodput for outcome in outcomes]
    low, median, high = (float(value) for value in np.quantile(found, (0.1, 0.5, 0.9)))
    return Point(
        every_s=every_s, mean=mean(found), low=low, median=median, high=high, closed_form=goodput(scenario, every_s)
    )


def _finite(value: object) -> object:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
