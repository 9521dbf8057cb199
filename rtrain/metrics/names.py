"""The metric that a key of a stored result belongs to, such as `ndcg@10` or `like_log_loss` of the label `like`."""

import re
from functools import cache
from typing import Any, get_args

from rtrain.metrics import ScoredMetric
from rtrain.metrics.beyond import Coverage, Diversity, Novelty, PopularityBias, Serendipity
from rtrain.metrics.language import Perplexity, TokenLoss
from rtrain.metrics.state import Metric
from rtrain.metrics.text import BLEU, ROUGE, Overlap

PARTS = r"@|>=|\["
"""What a name goes on with behind the metric's own: its k, its threshold, its groups or its slice."""


@cache
def _known() -> dict[str, Metric]:
    """Name without its `@k` or `>=threshold` -> metric; of two of one name either will do, they judge alike."""
    of_lists = (Coverage, Diversity, Novelty, PopularityBias, Serendipity)
    metrics: list[Metric] = [cls() for cls in (*get_args(ScoredMetric), *of_lists, TokenLoss, Perplexity, BLEU)]
    metrics += [ROUGE(of=of) for of in get_args(Overlap)]
    return {re.split(PARTS, metric.name)[0]: metric for metric in metrics}


def metric_of(key: str) -> Metric | None:
    """The metric with its default settings, whichever label's it is; none for a name that no metric here has."""
    name = re.split(PARTS, key)[0]
    fitting = [known for known in _known() if name == known or name.endswith(f"_{known}")]
    return _known()[max(fitting, key=len)] if fitting else None


def is_of_slice(key: str) -> bool:
    """Whether a key of a stored result is of a part of the rows, as `auc[gender=F]` and `auc[price>30]` are."""
    return bool(re.search("[=<>]", key.partition("[")[2]))


def spelled(name: str) -> ScoredMetric | None:
    """The metric of rows that a name without a label's prefix stands for, its k or threshold set; none: no such one."""
    for cls in get_args(ScoredMetric):
        metric: ScoredMetric = cls()
        short = getattr(cls, "short", metric.name)
        for separator, key, kind in (("@", "k", int), (">=", "threshold", float)):
            head, found, number = name.partition(separator)
            if found and head == short and hasattr(metric, key):
                return _with(cls, key, kind, number)
        if metric.name == name:
            return metric
    return None


def _with(cls: type[Any], key: str, kind: type[Any], number: str) -> ScoredMetric | None:
    try:
        made: ScoredMetric = cls(**{key: kind(number)})
    except ValueError:
        return None
    return made
