"""What a run's metrics make of the data's own baseline: means, or the most popular items."""

from math import isnan
from typing import Any

from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.evaluation.columns import Columns, partial_of, slices_of
from rtrain.metrics.state import Metric, evaluate
from rtrain.run import Run


def of_baseline(run: Run, dataset: Samples[Any], split: Split) -> dict[str, float] | None:
    """Metric -> its value on a split, of the test split by slices too; none where the data have no baseline."""
    metrics: tuple[Metric, ...] = run.metrics
    scored, columns = dataset.baseline(split, metrics), Columns(dataset, split)
    if not scored:
        return None
    scored = columns.told(scored)
    values = evaluate(metrics, [partial_of(metric, scored, columns) for metric in metrics])
    for one in slices_of(run.evaluation.slices if split == "test" else (), columns):
        part = one.of(scored, columns)
        found = evaluate(metrics, [partial_of(metric, part, columns) for metric in metrics])
        values |= {f"{metric}{one.name}": value for metric, value in found.items() if not isnan(value)}
    return values
