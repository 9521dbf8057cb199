"""Score a split over all ranks; every rank gets the same exact metric values."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtrain.data.reader import Ready, as_it_is
from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.errors import RunFailed
from rtrain.evaluation.columns import Columns, slices_of
from rtrain.evaluation.exchange import everyones, exchanged
from rtrain.evaluation.measuring import measured, over_ranks
from rtrain.evaluation.rows import MOST_ROWS, Kept, is_kept, keep
from rtrain.mesh import Mesh
from rtrain.metrics.shape import curves_of, shape_of
from rtrain.metrics.state import Metric, RowByRow
from rtrain.models.protocol import Objective
from rtrain.run import Run

SHAPE = "shape of the scores"


class Scorer(Protocol):
    """A model on this rank, as an evaluation asks it."""

    objective: Objective

    def score(self, batches: Iterable[Any]) -> tuple[Mapping[str, Any], int]:
        """What metrics take of this rank's rows, by label, and how many of those are not numbers; a collective."""


def scan(
    run: Run, dataset: Samples[Any], split: Split, mesh: Mesh, rank: int, ready: Ready = as_it_is
) -> Iterator[Any]:
    """A rank's share of a split, once, in file order; `ready` as for `Samples.reader`."""
    share = mesh.share(rank, run.blueprint.dealt)
    return dataset.scan(split, global_batch=run.evaluation.batch, rank=share.index, world_size=share.count, ready=ready)


def measure(
    scorer: Scorer, batches: Iterable[Any], metrics: tuple[Metric, ...], columns: Columns | None = None
) -> dict[str, float]:
    """Metrics of a split, exact over ranks: what ranks have is added in their order, never averaged.

    Those of the schema's first label have the metrics' own names, those of a further one `<label>_<metric>`.
    `columns`: of the split, for metrics with groups of their own.

    Raises:
        RunFailed: on every rank, when any rank has a row whose logit is not a finite number: an
            order of rows would still come out of it, and look like a metric.
    """
    scored = _sound(scorer, batches)
    mine = {prefix: columns.told(of) for prefix, of in scored.items()} if columns else scored
    values = {prefix: measured(of, metrics, columns) for prefix, of in mine.items()}
    return {f"{prefix}{name}": value for prefix, found in values.items() for name, value in found.items()}


@dataclass(frozen=True)
class Examined:
    """What is said of a split, the same on every rank but for the rows."""

    values: dict[str, float]
    """Metric -> value, as `measure` gives them."""
    slices: dict[str, float]
    """The same of the rows of each value of some columns, `auc[gender=F]`, but for those that are not defined."""
    curves: dict[str, Any]
    """Label -> the curves of `rtrain.metrics.shape`; none of tokens or of numbers."""
    rows: Kept
    """What a comparison with another run needs of each row; on rank 0 alone."""


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
    mine = {prefix: columns.told(of) for prefix, of in _sound(scorer, batches).items()}
    most = max((len(of.labels) for of in mine.values() if is_kept(of)), default=0)
    share = min(1.0, MOST_ROWS / max(1, sum(everyones(most))))
    parts = slices_of(slices, columns)
    whole, sliced = dict[str, float](), dict[str, float]()
    curves, rows = dict[str, Any](), dict[str, tuple[str, dict[str, NDArray[Any]]]]()
    for prefix, of in mine.items():
        found = measured(of, metrics, columns, parts)
        names = {metric.name for metric in metrics}
        whole |= {f"{prefix}{name}": value for name, value in found.items() if name in names}
        sliced |= {f"{prefix}{name}": value for name, value in found.items() if name not in names}
        drawn = isinstance(of, RowByRow) and of.drawn
        if scorer.objective.link and drawn:
            curves[prefix.removesuffix("_")] = curves_of(over_ranks({SHAPE: shape_of(of)})[SHAPE])
        if is_kept(of):
            kept = keep(of, share, grouped=grouped)
            rows[prefix] = (of.kind, exchanged(kept, np.zeros(len(kept["row"]), np.int64)))
    sliced = {name: value for name, value in sliced.items() if not isnan(value)}
    return Examined(whole, sliced, curves, Kept(rows, share, grouped))


def _sound(scorer: Scorer, batches: Iterable[Any]) -> Mapping[str, Any]:
    """What metrics take of this rank's rows, by label, when no rank has one that is not a number; a collective."""
    mine, broken = scorer.score(batches)
    broken = sum(everyones(broken))
    if broken:
        raise RunFailed(
            f"the model gives {broken} rows a logit that is not a finite number. Lower optim.lr or sparse_optim.lr, "
            "or set optim.clip_norm, and start anew with --fresh or under another name"
        )
    return mine
