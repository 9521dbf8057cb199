"""What a run's metrics make of the data's own baseline: means, or the most popular items."""

from typing import Any

from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.metrics.state import Metric, evaluate
from rtrain.run import Run


def of_baseline(run: Run, dataset: Samples[Any], split: Split) -> dict[str, float] | None:
    """Metric -> its value on a split; none where the data have no baseline."""
    metrics: tuple[Metric, ...] = run.metrics
    scored = dataset.baseline(split, metrics)
    return evaluate(metrics, [metric.partial(scored) for metric in metrics]) if scored else None
