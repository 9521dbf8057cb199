"""Every metric against scikit-learn, scipy or trec_eval; a sum of states whose split and order must not matter."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit
from scipy.stats import ks_2samp
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    ndcg_score,
    precision_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)  # fmt: skip

from rtrain import metrics as all_metrics
from rtrain.errors import ConfigError
from rtrain.metrics import (
    AUC,
    AUPRC,
    F1,
    GAUC,
    KS,
    MAE,
    MAP,
    MRR,
    MSE,
    NDCG,
    RMSE,
    Accuracy,
    Calibration,
    FAt,
    HitRate,
    LogLoss,
    NormalizedEntropy,
    Precision,
    PrecisionAt,
    Recall,
    RecallAt,
    RPrecision,
)  # fmt: skip
from rtrain.metrics.baseline import DAMPING, Means
from rtrain.metrics.state import Metric, Scored, evaluate

METRICS: tuple[Metric, ...] = (
    AUC(),
    LogLoss(),
    NDCG(k=1),
    NDCG(k=3),
    NDCG(k=10),
    NDCG(k=1000),
    GAUC(),
    Accuracy(),
    Accuracy(threshold=0.3),
    Calibration(),
    AUPRC(),
    KS(),
    NormalizedEntropy(),
    MSE(),
    RMSE(),
    MAE(),
    Precision(threshold=0.3),
    Recall(threshold=0.3),
    F1(threshold=0.3),
    F1(),
    *(kind(k=k) for kind in (PrecisionAt, RecallAt, FAt, HitRate, MRR, MAP) for k in (1, 3, 1000)),
    RPrecision(),
)


SKLEARN: dict[type, Any] = {
    MSE: mean_squared_error,
    RMSE: root_mean_squared_error,
    MAE: mean_absolute_error,
    # A difference of nothing over nothing: scikit-learn can say nan too.
    Precision: lambda labels, scores: precision_score(labels, scores >= 0.3, zero_division=np.nan),
    Recall: lambda labels, scores: recall_score(labels, scores >= 0.3, zero_division=np.nan),
}
TREC: dict[type, Callable[[int], Any]] = {
    PrecisionAt: lambda k: ir_measures.P @ k,
    RecallAt: lambda k: ir_measures.R @ k,
    HitRate: lambda k: ir_measures.Success @ k,
    MRR: lambda k: ir_measures.RR @ k,
    MAP: lambda k: ir_measures.AP @ k,
}


def by_trec_eval(metric: Any, scored: Scored) -> float:
    """The mean over groups with a positive by ir_measures, which calls TREC's own trec_eval."""
    judged, found = [], []
    # trec_eval breaks ties by names and keeps float32 scores: it is given places, worst first among equals.
    order = np.lexsort((scored.labels, -scored.logits))
    for place, row in enumerate(order):
        group = str(scored.groups[row])
        judged.append(ir_measures.Qrel(group, str(row), int(scored.labels[row])))
        found.append(ir_measures.ScoredDoc(group, str(row), float(len(order) - place)))
    measure = ir_measures.Rprec if isinstance(metric, RPrecision) else TREC[type(metric)](metric.k)
    ranked = {str(g) for g in scored.groups[scored.labels == 1]}
    values = [m.value for m in ir_measures.iter_calc([measure], judged, found) if m.query_id in ranked]
    assert len(values) == len(ranked)
    return float(np.mean(values)) if values else float("nan")


def reference(metric: Any, scored: Scored) -> float:
    """The metric by an independent library; nan where it is not defined."""
    scores, labels, groups = scored.probabilities, scored.labels, scored.groups
    # Metrics of the order see logits, of which scikit-learn takes no infinite ones: it is given their ranks.
    ranks = np.unique(scored.logits, return_inverse=True)[1].astype(np.float64)
    if isinstance(metric, AUPRC):
        return float(average_precision_score(labels, ranks)) if labels.any() else float("nan")
    if isinstance(metric, F1):
        called = scores >= metric.threshold
        return float(f1_score(labels, called, zero_division=np.nan))
    if type(metric) in SKLEARN:
        return float(SKLEARN[type(metric)](labels, scores))
    if isinstance(metric, KS):
        both = len(set(labels)) == 2
        return float(ks_2samp(ranks[labels == 1], ranks[labels == 0]).statistic) if both else float("nan")
    if isinstance(metric, NormalizedEntropy):
        if len(set(labels)) < 2:
            return float("nan")
        return reference(LogLoss(), scored) / float(log_loss(labels, np.full(len(labels), labels.mean())))
    if type(metric) in TREC or isinstance(metric, RPrecision):
        return by_trec_eval(metric, scored)
    if isinstance(metric, FAt):  # of each group, from trec_eval's P and R of that group alone
        values = []
        for group in np.unique(groups[labels == 1]):
            rows = part(scored, groups == group)
            p, r = by_trec_eval(PrecisionAt(k=metric.k), rows), by_trec_eval(RecallAt(k=metric.k), rows)
            values.append(2 * p * r / (p + r) if p + r else 0.0)
        return float(np.mean(values)) if values else float("nan")
    if isinstance(metric, AUC):
        return float(roc_auc_score(labels, ranks)) if len(set(labels)) == 2 else float("nan")
    if isinstance(metric, LogLoss):
        if np.abs(scored.logits).max() > 15:  # scikit-learn clips, and 1 - p has few digits left
            return float(-log_expit(np.where(labels == 1, scored.logits, -scored.logits)).mean())
        return float(log_loss(labels, scores, labels=[0, 1]))
    if isinstance(metric, Accuracy):
        return float(accuracy_score(labels, (scores >= metric.threshold).astype(float)))
    if isinstance(metric, Calibration):
        return float(scores.mean() / labels.mean()) if labels.any() else float("nan")
    values, weights = [], []
    for group in np.unique(groups):
        mine, found = labels[groups == group], ranks[groups == group]
        if isinstance(metric, NDCG) and mine.any():
            # scikit-learn refuses a list of one; a list of one positive is in perfect order.
            values.append(float(ndcg_score([mine], [found], k=metric.k)) if len(mine) > 1 else 1.0)
            weights.append(1)
        if isinstance(metric, GAUC) and len(set(mine)) == 2:
            values.append(float(roc_auc_score(mine, found)))
            weights.append(len(mine))
    return float(np.average(values, weights=weights)) if values else float("nan")


def scored(scores: Any, labels: Any, groups: Any) -> Scored:
    as_float = np.array(scores, dtype=np.float64)
    return Scored.of_probabilities(as_float, np.array(labels, np.float64), np.array(groups, np.int64))


def random_rows(seed: int) -> Scored:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 120))
    tied = seed % 2
    return Scored.of_probabilities(
        random.choice([0.0, 0.1, 0.3, 0.5, 0.9, 1.0], count) if tied else random.random(count),
        (random.random(count) < random.choice([0.02, 0.4, 0.95])).astype(np.float64),
        random.integers(0, random.integers(1, 20), count),
    )


ADVERSARIAL = {
    "one positive row": scored([0.3], [1], [7]),
    "one negative row": scored([0.3], [0], [7]),
    "positives only": scored([0.1, 0.5, 0.9], [1, 1, 1], [1, 1, 2]),
    "negatives only": scored([0.1, 0.5, 0.9], [0, 0, 0], [1, 1, 2]),
    "all tied": scored([0.5] * 6, [1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 2]),
    "tied across the cut of k": scored([0.9, 0.5, 0.5, 0.5, 0.1], [0, 1, 0, 0, 1], [3] * 5),
    "certain and right": scored([0.0, 1.0, 0.0], [0, 1, 0], [1, 1, 1]),
    "certain and wrong": scored([1.0, 0.0, 1.0], [0, 1, 0], [1, 1, 1]),
    "perfect order": scored([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], [1, 1, 1, 1]),
    "reversed order": scored([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], [1, 1, 1, 1]),
    "neighbouring floats": scored([0.5, np.nextafter(0.5, 1), np.nextafter(0.5, 0)], [1, 0, 1], [1, 1, 1]),
    "denormal scores": scored([5e-324, 0.0, 1e-310, 1e-300], [1, 0, 0, 1], [1, 1, 1, 1]),
    "groups of one row": scored([0.2, 0.4, 0.6], [1, 0, 1], [1, 2, 3]),
    "groups interleaved, negative and huge": scored(
        [0.2, 0.4, 0.6, 0.8, 0.3], [1, 0, 0, 1, 1], [-(2**62), 2**62, -(2**62), 2**62, 0]
    ),
    "same score in neighbouring groups": scored([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 1], [1, 1, 2, 2]),
}


def test_every_metric_is_held_against_a_reference() -> None:
    kinds = {type(m).__name__ for m in METRICS}
    assert kinds == set(all_metrics.__all__) - {"GroupMetric", "ScoredMetric"}


def name_of(metric: Metric) -> str:
    return repr(metric)


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_a_metric_is_the_references_on_random_rows(metric: Metric) -> None:
    for seed in range(60):
        rows = random_rows(seed)
        assert metric.value(metric.partial(rows)) == pytest.approx(
            reference(metric, rows), abs=1e-9, rel=0, nan_ok=True
        ), f"seed {seed}"


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_a_metric_is_the_references_on_adversarial_rows(metric: Metric, case: str) -> None:
    rows = ADVERSARIAL[case]
    expected = reference(metric, rows)
    assert metric.value(metric.partial(rows)) == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), st.booleans(), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    )
)
def test_every_metric_is_the_references_on_whatever_hypothesis_finds(rows: Any) -> None:
    given_rows = scored(*zip(*rows, strict=True))
    for metric in METRICS:
        expected = reference(metric, given_rows)
        assert metric.value(metric.partial(given_rows)) == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True), metric


def part(rows: Scored, keep: Any) -> Scored:
    return Scored(rows.logits[keep], rows.labels[keep], rows.groups[keep])


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_neither_the_split_into_partials_nor_their_order_changes_a_value(metric: Metric) -> None:
    for seed in range(30):
        rows = random_rows(seed)
        whole = metric.value(metric.partial(rows))
        random = np.random.default_rng(seed)
        for pieces in (1, 2, 3):
            # Rows of one group land on several ranks, and a rank may have no row at all.
            owner = random.integers(0, pieces, len(rows.labels))
            partials = [metric.partial(part(rows, owner == p)) for p in range(pieces)]
            for order in permutations(partials):
                total = order[0]
                for partial in order[1:]:
                    total = total + partial
                assert metric.value(total) == pytest.approx(whole, abs=1e-12, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_no_rows_at_all_have_no_value(metric: Metric) -> None:
    assert np.isnan(metric.value(metric.partial(scored([], [], []))))


def test_log_loss_of_a_confident_mistake_is_its_logit() -> None:
    # float32 has no probability between 1 - 6e-8 and 1, and none that it could give the third row but 0.
    logits = np.array([18.0, -18.0, -200.0, 18.0])
    rows = Scored(logits, np.array([0.0, 1.0, 1.0, 1.0]), np.zeros(4, np.int64))
    assert LogLoss().value(LogLoss().partial(rows)) == pytest.approx((18 + 18 + 200) / 4, abs=1e-7)
    assert MAE().value(MAE().partial(rows)) == pytest.approx(3 / 4, abs=1e-7)


def test_logits_whose_probabilities_round_to_one_number_are_not_tied() -> None:
    rows = Scored(np.array([40.0, 41.0, 42.0]), np.array([0.0, 1.0, 1.0]), np.zeros(3, np.int64))
    assert len(set(rows.probabilities)) == 1
    for metric in (AUC(), AUPRC(), KS(), GAUC(), NDCG(k=2), MRR(k=1)):
        assert metric.value(metric.partial(rows)) == 1.0


def test_probabilities_are_scipys_sigmoid_and_of_probabilities_undoes_it() -> None:
    logits = np.concatenate([np.linspace(-700, 700, 2801), [0.0, -0.0, np.inf, -np.inf, 1e-300, -36.8, 36.8]])
    rows = Scored(logits, np.zeros(len(logits)), np.zeros(len(logits), np.int64))
    np.testing.assert_allclose(rows.probabilities, expit(logits), rtol=1e-14, atol=0)
    moderate = np.abs(logits) < 9  # beyond, 1 - p has few digits left
    back = Scored.of_probabilities(rows.probabilities, rows.labels, rows.groups).logits
    np.testing.assert_allclose(back[moderate], logits[moderate], rtol=1e-12, atol=1e-12)


def test_a_score_at_the_threshold_counts_as_one() -> None:
    rows = scored([0.5, 0.5, 0.49], [1, 0, 0], [1, 1, 1])
    assert Accuracy().value(Accuracy().partial(rows)) == pytest.approx(2 / 3)


def test_ndcg_of_a_hand_worked_list() -> None:
    # Places 2 and 3 hold the positives; the ideal is places 1 and 2.
    rows = scored([0.9, 0.8, 0.7], [0, 1, 1], [1, 1, 1])
    expected = (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3))
    assert NDCG(k=10).value(NDCG(k=10).partial(rows)) == pytest.approx(expected, abs=1e-15)


def test_gauc_weighs_groups_by_their_rows_and_leaves_out_groups_of_one_class() -> None:
    rows = scored([0.9, 0.1, 0.1, 0.9, 0.5, 0.7], [1, 0, 1, 0, 0, 1], [1, 1, 2, 2, 2, 3])
    assert GAUC().value(GAUC().partial(rows)) == pytest.approx((1.0 * 2 + 0.0 * 3) / 5)


def test_evaluate_names_the_values() -> None:
    rows = random_rows(4)
    metrics = (AUC(), NDCG(k=3))
    values = evaluate(metrics, [m.partial(rows) for m in metrics])
    assert list(values) == ["auc", "ndcg@3"]
    assert values["auc"] == AUC().value(AUC().partial(rows))
    with pytest.raises(ValueError):
        evaluate(metrics, [metrics[0].partial(rows)])


def test_states_of_two_metrics_do_not_add() -> None:
    rows = random_rows(4)
    for one, other in ((LogLoss(), Accuracy()), (LogLoss(), AUC())):
        with pytest.raises(ValueError, match="two different metrics"):
            one.partial(rows) + other.partial(rows)


def test_equal_scores_earn_nothing_but_in_ndcg() -> None:
    rows = scored([0.5, 0.5], [1, 0], [1, 1])
    values = {m.name: m.value(m.partial(rows)) for m in (MRR(k=2), HitRate(k=1), PrecisionAt(k=1), NDCG(k=1))}
    assert values == {"mrr@2": 0.5, "hit_rate@1": 0.0, "precision@1": 0.0, "ndcg@1": 0.5}


@pytest.mark.parametrize("k", [0, -1])
def test_ndcg_at_no_place_is_refused(k: int) -> None:
    with pytest.raises(ConfigError) as caught:
        NDCG(k=k)
    assert str(caught.value) == f"NDCG.k: must be at least 1, got {k}"


@pytest.mark.parametrize("seed", range(5))
def test_the_baseline_is_ridge_regression_on_users_and_on_items(seed: int) -> None:
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 9, 200), random.integers(100, 130, 200)
    labels = (random.random(200) < 0.6).astype(np.float64)
    bias = Means.fit(labels, users, items)
    expected = np.full(200, labels.mean())
    for keys in (users, items):
        one_hot = (keys[:, None] == np.unique(keys)).astype(np.float64)
        # A mean damped by c rows of the global one is ridge regression with penalty c.
        expected += Ridge(alpha=DAMPING, fit_intercept=False).fit(one_hot, labels - labels.mean()).predict(one_hot)
    np.testing.assert_allclose(bias.predict(users, items), np.clip(expected, 1e-3, 1 - 1e-3), atol=1e-9, rtol=0)


def test_the_baseline_gives_the_mean_for_strangers_and_stays_a_probability() -> None:
    users, items = np.array([1] * 400 + [2] * 400), np.array([5] * 400 + [6] * 400)
    labels = np.array([1.0] * 400 + [0.0] * 400)
    bias = Means.fit(labels, users, items)
    # A user and an item that both lean one way would add up to more than certainty.
    assert bias.predict(np.array([1, 2, 99]), np.array([5, 6, 99])).tolist() == [0.999, 0.001, 0.5]
    assert bias.predict(np.array([1]), np.array([99]))[0] == pytest.approx(0.5 + 200 / 410, abs=1e-12)
    assert bias.predict(np.array([], np.int64), np.array([], np.int64)).shape == (0,)
