"""Metrics of rows that count several times, against the rows repeated; intervals, and how often they hold."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from rtrain.metrics import AUC, GAUC, MSE, NDCG, HitRate, LogLoss
from rtrain.metrics.names import spelled
from rtrain.metrics.paired import Side, paired_intervals
from rtrain.metrics.state import Metric, Retrieved, Scored, Valued, Weighable
from tests.unit.metrics.test_metrics import METRICS, name_of, random_rows


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_rows_that_count_several_times_are_those_rows_repeated(metric: Metric) -> None:
    assert isinstance(metric, Weighable)
    for seed in range(20):
        rows = replace(random_rows(seed), logits=random_rows(seed).logits.clip(-50, 50))  # no run has infinite ones
        often_group = np.random.default_rng(seed).integers(0, 4, int(rows.groups.max()) + 1)
        weighted = metric.weighted(rows)
        for counted in (often_group, np.ones_like(often_group), np.zeros_like(often_group)):
            often = counted[rows.groups]
            # A group that was drawn twice is two groups.
            copies = [np.flatnonzero(often > copy) for copy in range(4)]
            groups = np.concatenate([rows.groups[of] * 4 + copy for copy, of in enumerate(copies)])
            of = np.concatenate(copies)
            expected = metric.value(metric.partial(Scored(rows.logits[of], rows.labels[of], groups)))
            assert weighted(often.astype(np.float64)) == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True), seed


def two_models(seed: int, *, users: int, better: float = 0.8) -> tuple[Side, Side, float]:
    """Two predictors of numbers, whose errors of one user have a part in common; and by how much the second's mean
    squared error is truly lower."""
    random = np.random.default_rng(seed)
    units = np.repeat(np.arange(users), 3)
    count = len(units)

    def error(scale: float) -> Any:
        return scale * (random.normal(size=users)[units] + random.normal(size=count))

    labels = random.normal(size=count)
    common = error(0.5)
    sides = [Side(Valued(labels + common + error(scale), labels), units) for scale in (1.0, better)]
    return sides[0], sides[1], 2 * (better**2 - 1)


def test_the_interval_is_scipys() -> None:
    first, second, _ = two_models(0, users=60)
    found = paired_intervals(first, second, {"mse": MSE()}, draws=4000)["mse"]
    squared = [((s.scored.predicted - s.scored.labels) ** 2).reshape(-1, 3).mean(1) for s in (first, second)]
    expected = bootstrap(
        squared, lambda a, b, axis: (b - a).mean(axis), paired=True, method="percentile", n_resamples=4000, rng=1
    )
    assert found is not None
    # Two times 4,000 draws: the standard error of a quantile is 2.5 % of the interval.
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.06 * width)
    assert found.excludes_zero == (found.low > 0 or found.high < 0)
    assert paired_intervals(first, second, {"mse": MSE()}, draws=50) == paired_intervals(
        first, second, {"mse": MSE()}, draws=50
    )


def test_of_200_intervals_about_95_in_100_hold_the_true_difference() -> None:
    held = 0
    for seed in range(200):
        first, second, truth = two_models(seed, users=80)
        found = paired_intervals(first, second, {"mse": MSE()}, draws=400, seed=seed)["mse"]
        assert found is not None
        held += found.low <= truth <= found.high
    print(f"{held} of 200 held the true difference")
    assert 180 <= held <= 198


def test_rows_of_one_user_are_drawn_together() -> None:
    """With every row drawn for itself the interval would be too narrow: a user's errors go together."""
    first, second, _ = two_models(3, users=100)
    together = paired_intervals(first, second, {"mse": MSE()})["mse"]
    rows = np.arange(len(first.units))
    apart = paired_intervals(Side(first.scored, rows), Side(second.scored, rows), {"mse": MSE()})["mse"]
    assert together is not None and apart is not None
    assert together.high - together.low > 1.1 * (apart.high - apart.low)


def test_the_order_of_rows_does_not_matter_and_models_of_equal_scores_differ_by_nothing() -> None:
    random = np.random.default_rng(5)
    rows = Scored(random.normal(size=90), (random.random(90) < 0.4).astype(np.float64), random.integers(0, 12, 90))
    side = Side(rows, rows.groups)
    order = np.random.default_rng(0).permutation(len(rows.labels))
    mixed = Side(Scored(rows.logits[order], rows.labels[order], rows.groups[order]), rows.groups[order])
    for found in paired_intervals(side, mixed, {"auc": AUC(), "ndcg": NDCG(k=3), "gauc": GAUC()}, draws=200).values():
        assert found is not None and not found.excludes_zero
        assert abs(found.low) < 1e-12 and abs(found.high) < 1e-12


def test_too_little_to_draw_from_has_no_interval() -> None:
    one = Scored(np.array([0.1, 0.2]), np.array([0.0, 1.0]), np.zeros(2, np.int64))
    side = Side(one, one.groups)
    assert paired_intervals(side, side, {"auc": AUC()}, draws=20) == {"auc": None}
    rare = Scored(np.arange(30.0), (np.arange(30) == 3).astype(np.float64), np.zeros(30, np.int64))
    side = Side(rare, np.arange(30))  # the positive is missing in a third of the draws
    found = paired_intervals(side, side, {"auc": AUC(), "log_loss": LogLoss()}, draws=200)
    assert found["auc"] is None and found["log_loss"] is not None


def test_every_name_spells_its_metric() -> None:
    for metric in METRICS:
        assert spelled(metric.name) == metric
    assert spelled("ndcg@many") is spelled("nothing") is spelled("auc@3") is None


def test_lists_of_places_are_drawn_by_user() -> None:
    """Users whose first place is right against users whose third is: hit rate at 1 is 1 against 0."""
    groups = np.repeat(np.arange(10), 3)
    place = np.tile([0.0, -1.0, -2.0], 10)
    sides = [Side(Retrieved(place, np.tile(labels, 10), groups), groups) for labels in ([0.0, 0, 1], [1.0, 0, 0])]
    found = paired_intervals(sides[0], sides[1], {"ndcg@3": NDCG(k=3), "hit_rate@1": HitRate(k=1)}, draws=50)
    assert found["hit_rate@1"] is not None and (found["hit_rate@1"].low, found["hit_rate@1"].high) == (1.0, 1.0)
