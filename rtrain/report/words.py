"""Numbers as a person reads them."""

import json
import math
from datetime import UTC, datetime

from rtrain.metrics import Calibration
from rtrain.metrics.beyond import PopularityBias
from rtrain.metrics.names import metric_of

DASH = "–"  # noqa: RUF001 - a dash for what is not there, as typesetters set it


def spell_metric(value: float | None) -> str:
    """Four decimals."""
    return DASH if value is None else f"{value:.4f}"


def spell_count(value: float | None) -> str:
    """Thousands apart: `51,000`."""
    return DASH if value is None else f"{value:,.0f}"


def spell_bytes(count: float | None) -> str:
    """`105.2 KiB`."""
    if count is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def spell_seconds(seconds: float | None) -> str:
    """`0.42 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 10 else 1 if seconds >= 1 else 2}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def spell_share(share: float) -> str:
    """`12 %`; one decimal below ten."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def spell_time(seconds: float) -> str:
    """A moment, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def spell_name(metric: str) -> str:
    """`AUC`, `log loss`, `NDCG@10`, `AUC[gender=F]`."""
    upper = ("auc", "gauc", "ndcg", "mrr", "map", "hit", "mse", "mae")
    name, bracket, of = metric.partition("[")
    head, at, k = name.partition("@")
    return (head.upper() if head in upper else head.replace("_", " ")) + at + k + bracket + of


def is_better(metric: str, value: float, other: float) -> bool:
    """Whether `value` beats `other`, as the metric's own class says; calibration and popularity bias are best at 1.

    Of a metric that only another rtrain knows, higher counts as better.
    """
    known = metric_of(metric)
    if isinstance(known, Calibration | PopularityBias):
        return abs(value - 1) < abs(other - 1)
    return value < other if known and not known.higher_is_better else value > other


def number(value: object) -> float | None:
    """A finite number, else none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def plain(value: object, longest: int = 4000) -> str:
    """One line of JSON, cut beyond `longest` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text):,} characters)"
