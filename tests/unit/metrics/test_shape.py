"""The drawn curves of scores, against an independent library and against counting by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rtrain.metrics.shape import BARS, CALIBRATION_GROUPS, curves_of, shape_of
from rtrain.metrics.state import Scored


def scored(rows=20_000, rate=0.0, spread=1.5, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(rate, spread, rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    return Scored(logits, labels, np.zeros(rows, dtype=np.int64))


@pytest.mark.parametrize("rate", [0.0, -6.0])
def test_the_area_under_the_drawn_roc_is_the_auc(rate):
    rows = scored(rate=rate)
    roc = curves_of(shape_of(rows))["roc"]
    area = np.trapezoid(roc["true"], roc["false"])
    assert area == pytest.approx(roc_auc_score(rows.labels, rows.logits), abs=2e-3)
    assert (roc["false"][0], roc["true"][0], roc["false"][-1], roc["true"][-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(roc["false"]) >= 0) and np.all(np.diff(roc["true"]) >= 0)


@pytest.mark.parametrize("rate", [0.0, -6.0])
def test_calibration_groups_are_even_and_exact(rate):
    rows = scored(rate=rate)
    found = curves_of(shape_of(rows))["calibration"]
    assert len(found["rows"]) == CALIBRATION_GROUPS and sum(found["rows"]) == 20_000
    assert max(found["rows"]) < 1.1 * 1_000 and found["predicted"] == sorted(found["predicted"])
    held = np.array(found["rows"])
    assert np.dot(held, found["predicted"]) == pytest.approx(rows.probabilities.sum(), rel=1e-5)
    assert np.dot(held, found["observed"]) == pytest.approx(rows.labels.sum())
    # The labels were drawn with the very probabilities, so each group is calibrated up to chance.
    noise = 5 * np.sqrt(np.array(found["predicted"]) / held)
    assert np.all(np.abs(np.array(found["predicted"]) - found["observed"]) < noise)


def test_bars_hold_every_row_of_its_class():
    rows = scored()
    found = curves_of(shape_of(rows))["scores"]
    edges = np.array(found["edges"])
    assert len(found["with"]) == len(edges) - 1 <= BARS
    inner = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
    for label, name in ((0, "without"), (1, "with")):
        assert found[name] == np.histogram(rows.logits[rows.labels == label], inner)[0].tolist()


def test_shapes_of_ranks_add_up_to_the_shape_of_all_rows():
    rows = scored()
    parts = [Scored(rows.logits[i::3], rows.labels[i::3], rows.groups[i::3]) for i in range(3)]
    merged = shape_of(parts[0]) + shape_of(parts[1]) + shape_of(parts[2])
    whole = curves_of(shape_of(rows))
    assert curves_of(merged) == whole
    assert len(json.dumps(whole)) < 20_000


def test_one_class_no_row_and_endless_logits():
    logits, groups = np.array([-np.inf, 0.0, np.inf, 800.0]), np.zeros(4, dtype=np.int64)
    found = curves_of(shape_of(Scored(logits, np.ones(4), groups)))
    assert found["roc"] == {"false": [], "true": []}
    assert sum(found["scores"]["with"]) == sum(found["calibration"]["rows"]) == 4
    nothing = curves_of(shape_of(Scored(logits[:0], logits[:0], groups[:0])))
    assert nothing["scores"]["edges"] == nothing["calibration"]["rows"] == nothing["roc"]["true"] == []
