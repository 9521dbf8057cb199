"""The shape of the scores behind the metrics: ROC, calibration and distribution, small enough to draw and to store."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.metrics.state import Floats, Partial, Scored
from rtrain.rounding import ceil_div

BOUND, BINS = 24.0, 4800
"""Logits are counted in bins of 0.01 from -BOUND to BOUND; beyond it a probability is 4e-11 from 0 or 1."""
ROC_POINTS, CALIBRATION_GROUPS, BARS = 200, 20, 40


def shape_of(scored: Scored) -> Partial:
    """Rows and positives by bin of the logit, and the sum of the probabilities in it: sums, so ranks just add them."""
    where = np.clip((scored.logits + BOUND) * (BINS / (2 * BOUND)), 0, BINS - 1).astype(np.int64)

    def summed(weights: Floats | None) -> Floats:
        return np.bincount(where, weights, minlength=BINS).astype(np.float64)

    return Partial(
        sums={"rows": summed(None), "positives": summed(scored.labels), "probability": summed(scored.probabilities)}
    )


def curves_of(shape: Partial) -> dict[str, Any]:
    """JSON-ready curves of all rows; every point of them is exact, only which points there are depends on the bins.

    `roc`: false and true positive rate, at thresholds; empty with one class only. `calibration`: of groups of about
    equally many rows, by rising score, the mean prediction, the share of positives and the rows. `scores`: rows
    without and with the label between `edges`, which are logits; the outer bars hold what lies beyond.
    """
    sums = shape.sums
    return {"roc": _roc(sums), "calibration": _calibration(sums), "scores": _scores(sums)}


def _roc(sums: Mapping[str, Floats]) -> dict[str, list[float]]:
    positives = np.cumsum(sums["positives"][::-1])
    negatives = np.cumsum((sums["rows"] - sums["positives"])[::-1])
    if not positives[-1] or not negatives[-1]:
        return {"false": [], "true": []}
    false, true = (np.concatenate([[0.0], x / x[-1]]) for x in (negatives, positives))
    # Points at even distances along the curve, which climbs steeply at first and then turns.
    kept = _evenly(false + true, ROC_POINTS)
    return {"false": false[kept].round(6).tolist(), "true": true[kept].round(6).tolist()}


def _calibration(sums: Mapping[str, Floats]) -> dict[str, list[float]]:
    ends = _evenly(np.concatenate([[0.0], np.cumsum(sums["rows"])]), CALIBRATION_GROUPS + 1)
    groups = [slice(a, b) for a, b in pairwise(ends) if sums["rows"][a:b].any()]
    rows, said, seen = (
        np.array([sums[name][group].sum() for group in groups]) for name in ("rows", "probability", "positives")
    )
    return {"predicted": (said / rows).round(8).tolist(), "observed": (seen / rows).tolist(), "rows": rows.tolist()}


def _scores(sums: Mapping[str, Floats]) -> dict[str, list[float]]:
    """Bars over the range that holds all but one in a thousand rows at either end."""
    below = np.cumsum(sums["rows"])
    if not below[-1]:
        return {"edges": [], "without": [], "with": []}
    first, last = (int(np.searchsorted(below, share * below[-1])) for share in (0.001, 0.999))
    width = max(1, ceil_div(last + 1 - first, BARS))
    starts = [at for at in range(first, first + width * BARS, width) if at < BINS]
    bars = [slice(a, b) for a, b in pairwise([0, *starts[1:], BINS])]
    positives = np.array([sums["positives"][bar].sum() for bar in bars])
    rows = np.array([sums["rows"][bar].sum() for bar in bars])
    edges = (np.array([*starts, min(BINS, starts[-1] + width)]) * (2 * BOUND / BINS) - BOUND).round(4)
    return {"edges": edges.tolist(), "without": (rows - positives).tolist(), "with": positives.tolist()}


def _evenly(rising: Floats, count: int) -> NDArray[np.int64]:
    """Indices at which a curve that never falls has come about evenly far; the first and the last among them."""
    wanted = np.linspace(0, rising[-1], count)
    return np.unique(np.concatenate([[0], np.searchsorted(rising, wanted), [len(rising) - 1]]))
