"""Score a split over all ranks; every rank gets the same exact metric values."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any, Protocol

import torch.distributed as dist

from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.errors import RunFailed
from rtrain.evaluation.columns import Columns, partial_of, slices_of
from rtrain.evaluation.rows import MOST_ROWS, Kept, is_kept, keep
from rtrain.mesh import Mesh
from rtrain.metrics.shape import curves_of, shape_of
from rtrain.metrics.state import Metric, Partial, Scored, evaluate
from rtrain.models.protocol import Objective
from rtrain.run import Run

SHAPE, ROWS = "shape of the scores", "rows"
"""Beside the metrics' names, what else is kept of a label."""


class Scorer(Protocol):
    """A model on this rank, as an evaluation asks it."""

    objective: Objective

    def score(self, batches: Iterable[Any]) -> tuple[Mapping[str, Any], int]:
        """What metrics take of this rank's rows, by label, and how many of those are not numbers; a collective."""


def scan(run: Run, dataset: Samples[Any], split: Split, mesh: Mesh, rank: int) -> Iterator[Any]:
    """A rank's share of a split, once, in file order."""
    share = mesh.share(rank, run.blueprint.dealt)
    return dataset.scan(split, global_batch=run.evaluation.batch, rank=share.index, world_size=share.count)


def measure(
    scorer: Scorer, batches: Iterable[Any], metrics: tuple[Metric, ...], columns: Columns | None = None
) -> dict[str, float]:
    """Metrics of a split, exact over ranks: states are merged in rank order, never averaged.

    Those of the schema's first label have the metrics' own names, those of a further one `<label>_<metric>`.
    `columns`: of the split, for metrics with groups of their own.

    Raises:
        RunFailed: on every rank, when any rank has a row whose logit is not a finite number: an
            order of rows would still come out of it, and look like a metric.
    """
    mine, broken = scorer.score(batches)
    mine = {prefix: columns.told(of) for prefix, of in mine.items()} if columns else mine
    return _values(metrics, _merged(mine, broken, lambda of: {m.name: partial_of(m, of, columns) for m in metrics}))


@dataclass(frozen=True)
class Examined:
    """What is said of a split, the same on every rank."""

    values: dict[str, float]
    """Metric -> value, as `measure` gives them."""
    slices: dict[str, float]
    """The same of the rows of each value of some columns, `auc[gender=F]`, but for those that are not defined."""
    curves: dict[str, Any]
    """Label -> the curves of `rtrain.metrics.shape`; none of tokens or of numbers."""
    rows: Kept
    """What a comparison with another run needs of each row."""


def examine(
    scorer: Scorer,
    batches: Iterable[Any],
    metrics: tuple[Metric, ...],
    columns: Columns,
    *,
    grouped: bool,
    slices: tuple[str, ...] = (),
) -> Examined:
    """As `measure`, and what is behind the values; `grouped`: whether the rows that are kept belong to groups."""
    scored, broken = scorer.score(batches)
    mine = {prefix: columns.told(of) for prefix, of in scored.items()}
    sizes = [0] * dist.get_world_size()
    dist.all_gather_object(sizes, max((len(of.labels) for of in mine.values() if is_kept(of)), default=0))
    share = min(1.0, MOST_ROWS / max(1, sum(sizes)))

    parts = slices_of(slices, columns)

    def partials(of: Any) -> dict[str, Partial]:
        drawn = scorer.objective.link and isinstance(of, Scored)
        found = {metric.name: partial_of(metric, of, columns) for metric in metrics}
        for one in parts:
            part = one.of(of, columns)
            found |= {f"{metric.name}{one.name}": partial_of(metric, part, columns) for metric in metrics}
        kept = {ROWS: keep(of, share, grouped=grouped)} if is_kept(of) else {}
        return found | ({SHAPE: shape_of(of)} if drawn else {}) | kept

    merged = _merged(mine, broken, partials)
    curves = {prefix.removesuffix("_"): curves_of(of[SHAPE]) for prefix, of in merged.items() if SHAPE in of}
    rows = {prefix: (type(mine[prefix]).__name__, of[ROWS]) for prefix, of in merged.items() if ROWS in of}
    by_slice = {
        f"{prefix}{metric.name}{one.name}": metric.value(of[f"{metric.name}{one.name}"])
        for prefix, of in merged.items()
        for one in parts
        for metric in metrics
    }
    by_slice = {name: value for name, value in by_slice.items() if not isnan(value)}
    return Examined(_values(metrics, merged), by_slice, curves, Kept(rows, share, grouped))


def _merged(
    mine: Mapping[str, Any], broken: int, partials: Callable[[Any], dict[str, Partial]]
) -> dict[str, dict[str, Partial]]:
    """Each label's states over all ranks, by name."""
    gathered: list[tuple[int, dict[str, dict[str, Partial]]]] = [(0, {})] * dist.get_world_size()
    dist.all_gather_object(gathered, (broken, {} if broken else {prefix: partials(of) for prefix, of in mine.items()}))
    broken = sum(count for count, _ in gathered)
    if broken:
        raise RunFailed(
            f"the model gives {broken} rows a logit that is not a finite number. Lower optim.lr or sparse_optim.lr, "
            "or set optim.clip_norm, and start anew with --fresh or under another name"
        )
    merged = gathered[0][1]
    for _, other in gathered[1:]:
        merged = {prefix: {k: v + other[prefix][k] for k, v in of.items()} for prefix, of in merged.items()}
    return merged


def _values(metrics: tuple[Metric, ...], merged: Mapping[str, Mapping[str, Partial]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for prefix, found in merged.items():
        values |= {f"{prefix}{k}": v for k, v in evaluate(metrics, [found[m.name] for m in metrics]).items()}
    return values
