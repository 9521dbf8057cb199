"""The failure simulator against the closed form, against exact cases, and against what has to be better or worse."""

import math
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest

from rtrain.errors import ConfigError
from rtrain.goodput import Scenario, study
from rtrain.goodput.closed_form import daly_s, goodput, interruption_s, losing_s, young_s
from rtrain.goodput.simulation import Outcome, simulate

BASE = Scenario(
    nodes=64, mtbf_hours=640, checkpoint_s=30, write_s=120, restart_s=300, days=28, repair_hours=0
)  # an interruption every 10 hours, 67 in a run  # fmt: skip
EVERY_S = 1800.0
SEEDS = range(20)


def runs(scenario: Scenario, every_s: float = EVERY_S) -> list[Outcome]:
    return [simulate(scenario, every_s=every_s, seed=seed) for seed in SEEDS]


def goodputs(scenario: Scenario, every_s: float = EVERY_S) -> list[float]:
    return [outcome.goodput for outcome in runs(scenario, every_s)]


def better(one: Scenario, other: Scenario) -> float:
    """Mean difference in its own standard errors; the same seeds have the same failures, so it is a paired one."""
    gaps = [a - b for a, b in zip(goodputs(one), goodputs(other), strict=True)]
    return mean(gaps) / (stdev(gaps) / math.sqrt(len(gaps)))


def test_without_failures_only_checkpoints_cost_anything() -> None:
    scenario = replace(BASE, mtbf_hours=math.inf, checkpoint_s=40, days=1)
    found = simulate(scenario, every_s=600, seed=0)  # 86400 s = 135 periods of 640 s, exactly
    assert found.goodput == pytest.approx(600 / 640, abs=1e-12)
    assert goodput(scenario, 600) == 600 / 640
    assert found.interruptions == 0 and found.lost_s == found.restart_s == found.waiting_s == 0


CASES = {
    "replaced at once": BASE,
    "written behind training, long": replace(BASE, write_s=1500),
    "often": replace(BASE, mtbf_hours=64, restart_s=600),  # an interruption an hour
    "waits for the repair": replace(BASE, repair_hours=5),
    "announced preemptions": replace(BASE, preemptions_per_day=0.1, notice_s=200),
    "preemptions without enough notice": replace(BASE, preemptions_per_day=0.1, notice_s=100),
}


def tolerance(scenario: Scenario, found: list[float]) -> float:
    """How far the mean over seeds may be from the closed form.

    Four standard errors: one in 16,000 by chance, and seeds are fixed. Beside them what the formula leaves out, each at
    its largest. The start and the end: a run begins without a restart and ends without losing what is not committed, so
    up to one restart and one period with its writing in the horizon. Nodes that are away cannot fail: their share,
    D / MTBF, of all interruptions, which take less than the whole of the time. Further interruptions during the
    checkpoint of a notice: probability (C + W) / M, of a cycle's C + W.
    """
    saving_s = scenario.checkpoint_s + scenario.write_s
    chance = 4 * stdev(found) / math.sqrt(len(found))
    ends = (scenario.restart_s + EVERY_S + saving_s) / scenario.horizon_s
    away = scenario.repair_s * scenario.interruptions_per_s
    return chance + ends + away + (saving_s / interruption_s(scenario)) ** 2


@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_seeds_is_the_closed_forms(case: str) -> None:
    found = goodputs(CASES[case])
    assert mean(found) == pytest.approx(goodput(CASES[case], EVERY_S), abs=tolerance(CASES[case], found))


@pytest.mark.parametrize(
    ("case", "without"),
    [
        ("written behind training, long", {"write_s": 0}),
        ("often", {"restart_s": 0}),
        ("waits for the repair", {"repair_hours": 0}),
        ("announced preemptions", {"notice_s": 0}),
        ("preemptions without enough notice", {"notice_s": 200}),
    ],
)
def test_a_formula_without_one_of_its_terms_is_seen(case: str, without: dict[str, float]) -> None:
    found = goodputs(CASES[case])
    wrong = goodput(replace(CASES[case], **without), EVERY_S)  # type: ignore[arg-type]
    assert abs(mean(found) - wrong) > tolerance(CASES[case], found)


def test_without_writing_and_waiting_it_is_dalys_wall_time() -> None:
    scenario = replace(BASE, write_s=0)
    m, c, r, t = interruption_s(scenario), 30.0, 300.0, EVERY_S
    wall = m * math.exp(r / m) * (math.exp((t + c) / m) - 1) / t
    assert goodput(scenario, t) == pytest.approx(1 / wall, rel=1e-12)
    assert young_s(scenario) == pytest.approx(math.sqrt(2 * c * 36000))


@pytest.mark.parametrize("mtbf_hours", [20000, 640, 64, 10])
def test_dalys_interval_is_the_closed_forms_maximum(mtbf_hours: float) -> None:
    scenario = replace(BASE, mtbf_hours=mtbf_hours)
    best = max(goodput(scenario, daly_s(scenario) * 1.01**step) for step in range(-100, 101))
    # His series is cut off after the third term: at C / 2M = 0.027 (an interruption every 9 minutes) by some 1e-5.
    assert best - goodput(scenario, daly_s(scenario)) < 2e-5


def test_the_best_interval_is_dalys() -> None:
    """The means at the best and at Daly's differ by less than what makes no difference."""
    found = study(BASE, seeds=20)
    assert found.best is not None and found.as_good_s is not None
    assert found.as_good_s[0] <= found.daly_s * 1.001 and found.daly_s <= found.as_good_s[1] * 1.001
    assert found.daly_s / 2 < found.best.every_s < found.daly_s * 2
    # The ends of the search lose: else the best would be an artefact of where it looked.
    assert found.points[0].mean < found.best.mean - 0.05 and found.points[-1].mean < found.best.mean - 0.05


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    assert simulate(BASE, every_s=EVERY_S, seed=3) == simulate(BASE, every_s=EVERY_S, seed=3)
    assert simulate(BASE, every_s=EVERY_S, seed=3) != simulate(BASE, every_s=EVERY_S, seed=4)


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("spares", [0, 2])
@pytest.mark.parametrize("notice_s", [0, 200])
def test_the_parts_are_the_whole(elastic: bool, spares: int, notice_s: float) -> None:
    scenario = replace(
        BASE, elastic=elastic, spares=spares, repair_hours=5, preemptions_per_day=0.1, notice_s=notice_s,
        return_hours=1,
    )  # fmt: skip
    for found in runs(scenario)[:5]:
        assert found.wall_s == pytest.approx(scenario.horizon_s, rel=1e-12)
        assert found.node_s < scenario.machines * scenario.horizon_s  # some were away
        assert found.interruptions > 0
        assert (found.shrunk_s > 0) == elastic
        assert elastic or found.waiting_s > 0


@pytest.mark.parametrize("elastic", [False, True])
def test_more_failures_are_never_better(elastic: bool) -> None:
    means = [
        mean(goodputs(replace(BASE, mtbf_hours=hours, repair_hours=2, elastic=elastic)))
        for hours in (6400, 1600, 640, 320, 160)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 0.05


def test_elastic_is_better_than_waiting_for_a_long_repair() -> None:
    fixed = replace(BASE, repair_hours=12)
    assert better(replace(fixed, elastic=True), fixed) > 4


def test_elastic_does_not_grow_where_joining_costs_more_than_it_gives() -> None:
    """Nodes that are back within a minute: growing at once would double the restarts."""
    scenario = replace(BASE, nodes=1000, mtbf_hours=1000, repair_hours=1 / 60, elastic=True, days=2)
    found = simulate(scenario, every_s=600, seed=0)
    assert found.restart_s < 1.1 * found.interruptions * scenario.restart_s
    assert found.shrunk_s > 0


def test_elastic_grows_when_a_node_is_back_and_the_next_failure_is_far() -> None:
    scenario = replace(BASE, nodes=4, mtbf_hours=400, repair_hours=5, elastic=True)  # an interruption every 100 hours
    for found in runs(scenario):
        assert found.shrunk_s <= found.interruptions * scenario.repair_s / 4
    assert sum(found.shrunk_s for found in runs(scenario)) > 0


def test_spares_take_the_wait_away() -> None:
    fixed = replace(BASE, repair_hours=12)
    assert better(replace(fixed, spares=8), fixed) > 4
    assert sum(outcome.waiting_s for outcome in runs(replace(fixed, spares=20))) == 0


def test_spot_with_notice_loses_less() -> None:
    spot = replace(BASE, preemptions_per_day=0.2, notice_s=0)
    assert better(replace(spot, notice_s=150), spot) > 4  # 30 s + 120 s: just enough
    assert goodputs(replace(spot, notice_s=149)) == goodputs(spot)
    lost = [mean(outcome.lost_s for outcome in runs(s)) for s in (replace(spot, notice_s=150), spot)]
    assert lost[0] < 0.5 * lost[1]  # 2 of 3 interruptions are preemptions of this rate


def test_preemptions_count_in_the_optimum_only_where_they_lose_work() -> None:
    spot = replace(BASE, preemptions_per_day=0.2)
    assert losing_s(replace(spot, notice_s=600)) == pytest.approx(losing_s(BASE))
    assert losing_s(spot) == interruption_s(spot) < interruption_s(BASE)


def test_cost_is_of_all_that_are_there() -> None:
    scenario = replace(BASE, mtbf_hours=math.inf, days=1, price_per_device_hour=2.0, spares=1)
    found = study(scenario, every_s=600, seeds=2)
    assert found.cost == pytest.approx(65 * 8 * 24 * 2.0)
    assert found.cost_per_useful_device_hour == pytest.approx(2.0 * 65 / 64 / found.chosen.mean)
    assert found.best is None and found.to_json()["daly_s"] is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"nodes": 0}, "--nodes: must be above 0, got 0. Give a number above 0"),
    ({"mtbf_hours": -1}, "--mtbf-hours: must be above 0, got -1. Give a number above 0"),
    ({"mtbf_hours": math.nan}, "--mtbf-hours: must be above 0, got nan. Give a number above 0"),
    ({"checkpoint_s": 0}, "--checkpoint-s: must be above 0, got 0. Give a number above 0"),
    ({"restart_s": -5}, "--restart-s: must be 0 or more, got -5. Give a number 0 or more"),
    ({"days": math.inf}, "--days: inf is no duration or count; give a finite number"),
    ({"price_per_device_hour": 0}, "--price: must be above 0, got 0. Give a number above 0"),
    (
        {"notice_s": 120},
        "--notice-s: 120 is of preemptions, but --preemptions-per-day is 0, so none comes. Give --preemptions-per-day "
        "above 0, or leave --notice-s out",
    ),
    ({"return_hours": 1}, "--return-hours: 1 is of preemptions, but --preemptions-per-day is 0, so none comes."),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_a_scenario_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(BASE, **values)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("scenario", "options", "message"),
    [
        (BASE, {"every_s": 60}, "--checkpoint-every-s: 60 s, but a checkpoint takes 120 s to be written (--write-s)"),
        (BASE, {"every_s": -1}, "--checkpoint-every-s: must be above 0, got -1"),
        (BASE, {"every_s": 1e9}, "--checkpoint-every-s: 1e+09 s, but the run ends after 2.4192e+06 s (--days 28)"),
        (BASE, {"seeds": 0}, "--seeds: must be at least 1, got 0"),
        (BASE, {"seeds": 10**6}, "--seeds: 1000000 runs of 28 days at 26 intervals have"),
        (replace(BASE, mtbf_hours=math.inf), {}, "--checkpoint-every-s: auto, but no work is ever lost here"),
    ],
)
def test_a_study_that_cannot_be_is_refused(scenario: Scenario, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        study(scenario, **options)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
