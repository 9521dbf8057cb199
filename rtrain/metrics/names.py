"""The metric that a key of a stored result belongs to, such as `ndcg@10` or `like_log_loss` of the label `like`."""

import re
from functools import cache
from typing import get_args

from rtrain.metrics import ScoredMetric
from rtrain.metrics.language import Perplexity, TokenLoss
from rtrain.metrics.state import Metric


@cache
def _known() -> dict[str, Metric]:
    """Name without its `@k` or `>=threshold` -> metric; of two of one name either will do, they judge alike."""
    metrics: list[Metric] = [cls() for cls in (*get_args(ScoredMetric), TokenLoss, Perplexity)]
    return {re.split("@|>=", metric.name)[0]: metric for metric in metrics}


def metric_of(key: str) -> Metric | None:
    """The metric with its default settings, whichever label's it is; none for a name that no metric here has."""
    name = re.split("@|>=", key)[0]
    fitting = [known for known in _known() if name == known or name.endswith(f"_{known}")]
    return _known()[max(fitting, key=len)] if fitting else None
