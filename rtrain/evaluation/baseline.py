"""What a run's metrics make of what its model is held against, and how sure the differences are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from math import isnan
from typing import Any

import numpy as np

from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.evaluation.columns import Columns, partial_of, slices_of
from rtrain.evaluation.rows import TestRows
from rtrain.metrics.paired import Side, paired_intervals
from rtrain.metrics.state import Metric, RowByRow, Weighable, evaluate, group_columns, takes
from rtrain.run import Run

RANDOM = "random order"
MOST_DRAWN, MOST_DRAWS = 1_000_000, 100
"""Of the random order: rows of all draws together, of one at least, and draws."""
MOST_PAIRED = 200_000
"""Rows of the test split beyond which differences have no interval."""
DRAWS = 200
"""Of the paired bootstrap: of several baselines after every run, so fewer than `rtrain compare` takes."""


def of_baselines(run: Run, dataset: Samples[Any], model: Mapping[str, TestRows]) -> list[dict[str, Any]]:
    """Each of the data's baselines, the first of which the report's sentences are of, and the random order behind them.

    `name`; `test`: metric -> value, by slices too; `valid`; `intervals`: metric -> `low`, `high` and `excludes_0` of
    the model's value less the baseline's, on the test split. A split of which a baseline says nothing leaves it out.
    `model`: the rows of the test split as the best checkpoint scored them; empty: no intervals.
    """
    baselines, first = list[dict[str, Any]](), None
    for baseline in dataset.baselines(run.metrics, run.evaluation.boosting_rows):
        scored = baseline.says("test")
        if not scored:
            continue
        first = scored if first is None else first
        baselines.append(
            {
                "name": baseline.name,
                "test": _values(run, dataset, "test", scored),
                "valid": _values(run, dataset, "valid", baseline.says("valid")),
                "intervals": intervals(model, scored, run.metrics, dataset.numbers("test").start),
            }
        )
    ordered = [metric for metric in run.metrics if metric.by_group]
    if first is not None and ordered and isinstance(first, RowByRow) and first.drawn:
        values = in_random_order(first, ordered, Columns(dataset, "test"))
        baselines.append({"name": RANDOM, "test": values, "valid": {}, "intervals": {}})
    return baselines


def _values(run: Run, dataset: Samples[Any], split: Split, scored: Any) -> dict[str, float]:
    columns, metrics = Columns(dataset, split), run.metrics
    scored = columns.told(scored)
    values = evaluate(metrics, [partial_of(metric, scored, columns) for metric in metrics])
    for one in slices_of(run.evaluation.slices if split == "test" else (), columns):
        part = one.of(scored, columns)
        found = evaluate(metrics, [partial_of(metric, part, columns) for metric in metrics])
        values |= {f"{metric}{one.name}": value for metric, value in found.items() if not isnan(value)}
    return values


def in_random_order(scored: Any, metrics: Sequence[Metric], columns: Columns, *, seed: int = 0) -> dict[str, float]:
    """Metric -> its mean over rows that are ordered by chance, again and again."""
    random, rows = np.random.default_rng(seed), len(scored.labels)
    draws = min(MOST_DRAWS, max(1, MOST_DRAWN // max(1, rows)))
    found = []
    for _ in range(draws):
        drawn = replace(scored, logits=random.standard_normal(rows))
        found.append([metric.value(partial_of(metric, drawn, columns)) for metric in metrics])
    return dict(zip((metric.name for metric in metrics), np.mean(found, axis=0).tolist(), strict=True))


def intervals(
    model: Mapping[str, TestRows], scored: Any, metrics: Iterable[Metric], first: int
) -> dict[str, dict[str, Any]]:
    """Metric -> the interval of the model's value less that of `scored`, of the rows that the model kept.

    Groups (users; rows where there are none) are drawn together. None of metrics with groups of their own.
    `first`: number of the split's first row.
    """
    if "" not in model or not isinstance(scored, RowByRow) or scored.rows is None:
        return {}
    ours = model[""]
    if len(ours.scored.labels) > MOST_PAIRED or ours.scored.kind != scored.kind:
        return {}
    theirs = _in_order(scored, first)
    wanted: dict[str, Weighable] = {}
    for metric in metrics:
        fits = takes(metric, type(scored)) and (ours.grouped or not metric.by_group)
        if fits and isinstance(metric, Weighable) and not group_columns(metric):
            wanted[metric.name] = metric
    units = theirs.rows if scored.numbers_queries else ours.units
    found = paired_intervals(Side(theirs, units), Side(ours.scored, ours.units), wanted, draws=DRAWS)
    return {
        name: {"low": between.low, "high": between.high, "excludes_0": between.excludes_zero}
        for name, between in found.items()
        if between
    }


def _in_order(scored: Any, first: int) -> Any:
    """The rows in the order of their numbers within the split, as `TestRows` has them."""
    numbers = scored.rows - first
    order = np.argsort(numbers, kind="stable")
    arrays = {f.name: getattr(scored, f.name) for f in fields(scored)}
    arrays = {name: array[order] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return replace(scored, **arrays | {"rows": numbers[order]})
