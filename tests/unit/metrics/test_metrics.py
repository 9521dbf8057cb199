"""Against scikit-learn, on random rows and on the awkward ones; and exact over any split of the rows."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, ndcg_score, roc_auc_score

from rtrain.errors import ConfigError
from rtrain.metrics import AUC, GAUC, NDCG, Accuracy, Calibration, LogLoss
from rtrain.metrics.baseline import DAMPING, UserItemBias
from rtrain.metrics.state import Metric, Partial, Scored, evaluate

ALL: tuple[Metric, ...] = (AUC(), LogLoss(), NDCG(k=1), NDCG(k=10), GAUC(), Accuracy(), Calibration())


def draw(seed: int) -> Scored:
    """Up to 80 rows; every other draw has heavy ties, every fifth one class only."""
    r = np.random.default_rng(seed)
    n = int(r.integers(2, 80))
    scores = r.choice([0.0, 0.1, 0.5, 0.9, 1.0], n) if seed % 2 else r.random(n)
    labels = np.full(n, float(seed % 10 == 0)) if seed % 5 == 0 else (r.random(n) > 0.6).astype(np.float64)
    return Scored(scores=scores, labels=labels, groups=r.integers(0, 6, n))


def value(metric: Metric, scored: Scored) -> float:
    return metric.value(metric.partial(scored))


def same(a: float, b: float, tolerance: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance


@pytest.mark.parametrize("seed", range(60))
def test_against_scikit_learn(seed: int) -> None:
    s = draw(seed)
    one_class = len(set(s.labels)) == 1
    assert math.isnan(value(AUC(), s)) if one_class else abs(value(AUC(), s) - roc_auc_score(s.labels, s.scores)) < 1e-9
    assert abs(value(LogLoss(), s) - log_loss(s.labels, s.scores, labels=[0, 1])) < 1e-9
    assert abs(value(Accuracy(), s) - accuracy_score(s.labels, s.scores >= 0.5)) < 1e-9
    for k in (1, 3, 10, 500):
        found = []
        for g in np.unique(s.groups):
            y, p = s.labels[s.groups == g], s.scores[s.groups == g]
            if y.sum() > 0:
                found.append(ndcg_score([y], [p], k=k) if len(y) > 1 else 1.0)
        assert same(value(NDCG(k=k), s), float(np.mean(found)) if found else math.nan, 1e-9)
    areas = []
    for g in np.unique(s.groups):
        y, p = s.labels[s.groups == g], s.scores[s.groups == g]
        if len(set(y)) == 2:
            areas.append((roc_auc_score(y, p), len(y)))
    expected = sum(a * w for a, w in areas) / sum(w for _, w in areas) if areas else math.nan
    assert same(value(GAUC(), s), expected, 1e-9)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_exact_over_ranks(seed: int, parts: int) -> None:
    s = draw(seed)
    shuffled = np.random.default_rng(seed + 1000).permutation(len(s.scores))
    for metric in ALL:
        merged: Partial | None = None
        for at in np.array_split(shuffled, parts):
            part = metric.partial(Scored(s.scores[at], s.labels[at], s.groups[at]))
            merged = part if merged is None else merged + part
        assert merged is not None
        assert same(metric.value(merged), value(metric, s), 1e-12), metric.name


def test_no_rows_have_no_value() -> None:
    empty = Scored(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    assert all(math.isnan(v) for v in evaluate(ALL, [m.partial(empty) for m in ALL]).values())


def test_calibration_and_names() -> None:
    s = Scored(np.array([0.5, 0.25]), np.array([1.0, 0.0]), np.array([0, 0]))
    assert value(Calibration(), s) == 0.75
    assert [m.name for m in ALL] == ["auc", "log_loss", "ndcg@1", "ndcg@10", "gauc", "accuracy", "calibration"]
    with pytest.raises(ConfigError, match=r"NDCG\.k: must be at least 1, got 0"):
        NDCG(k=0)


def test_states_of_two_metrics_do_not_add() -> None:
    s = draw(1)
    with pytest.raises(ValueError, match="two different metrics"):
        AUC().partial(s) + LogLoss().partial(s)


def test_the_bias_baseline_against_a_brute_force() -> None:
    r = np.random.default_rng(0)
    users, items, labels = r.integers(0, 9, 200), r.integers(0, 7, 200), (r.random(200) > 0.4).astype(np.float64)
    model = UserItemBias.fit(users, items, labels)
    mean = labels.mean()

    def deviation(keys: np.ndarray, key: int) -> float:
        mine = labels[keys == key]
        return float((mine - mean).sum() / (len(mine) + DAMPING)) if len(mine) else 0.0

    asked_users, asked_items = np.array([0, 3, 99]), np.array([1, 99, 99])
    expected = [mean + deviation(users, u) + deviation(items, i) for u, i in zip(asked_users, asked_items, strict=True)]
    assert model.predict(asked_users, asked_items) == pytest.approx(expected, abs=1e-12)
    assert model.predict(np.array([99]), np.array([99]))[0] == pytest.approx(mean)
