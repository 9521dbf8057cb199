"""Score a split over all ranks; every rank gets the same exact metric values."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch.distributed as dist

from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.errors import RunFailed
from rtrain.mesh import Mesh
from rtrain.metrics.shape import curves_of, shape_of
from rtrain.metrics.state import Metric, Partial, Scored, evaluate
from rtrain.models.protocol import Objective
from rtrain.run import Run


class Scorer(Protocol):
    """A model on this rank, as an evaluation asks it."""

    objective: Objective

    def score(self, batches: Iterable[Any]) -> tuple[Mapping[str, Any], int]:
        """What metrics take of this rank's rows, by label, and how many of those are not numbers; a collective."""


def scan(run: Run, dataset: Samples[Any], split: Split, mesh: Mesh, rank: int) -> Iterator[Any]:
    """A rank's share of a split, once, in file order."""
    share = mesh.share(rank, run.blueprint.dealt)
    return dataset.scan(split, global_batch=run.evaluation.batch, rank=share.index, world_size=share.count)


def measure(scorer: Scorer, batches: Iterable[Any], metrics: tuple[Metric, ...]) -> dict[str, float]:
    """Metrics of a split, exact over ranks: states are merged in rank order, never averaged.

    Those of the schema's first label have the metrics' own names, those of a further one `<label>_<metric>`.

    Raises:
        RunFailed: on every rank, when any rank has a row whose logit is not a finite number: an
            order of rows would still come out of it, and look like a metric.
    """
    return _values(metrics, _gather(scorer, batches, lambda of: [metric.partial(of) for metric in metrics]))


def examine(
    scorer: Scorer, batches: Iterable[Any], metrics: tuple[Metric, ...]
) -> tuple[dict[str, float], dict[str, Any]]:
    """As `measure`; and by label the curves of `rtrain.metrics.shape`, none of tokens or of numbers."""

    def partials(of: Any) -> list[Partial]:
        drawn = scorer.objective.link and isinstance(of, Scored)
        return [*(metric.partial(of) for metric in metrics), *([shape_of(of)] if drawn else [])]

    merged = _gather(scorer, batches, partials)
    shapes = {prefix: found[len(metrics)] for prefix, found in merged.items() if len(found) > len(metrics)}
    curves = {prefix.removesuffix("_"): curves_of(shape) for prefix, shape in shapes.items()}
    return _values(metrics, merged), curves


def _gather(
    scorer: Scorer, batches: Iterable[Any], partials: Callable[[Any], list[Partial]]
) -> dict[str, list[Partial]]:
    """Each label's states over all ranks."""
    mine, broken = scorer.score(batches)
    gathered: list[tuple[int, list[list[Partial]]]] = [(0, [])] * dist.get_world_size()
    dist.all_gather_object(gathered, (broken, [] if broken else [partials(of) for of in mine.values()]))
    broken = sum(count for count, _ in gathered)
    if broken:
        raise RunFailed(
            f"the model gives {broken} rows a logit that is not a finite number. Lower optim.lr or sparse_optim.lr, "
            "or set optim.clip_norm, and start anew with --fresh or under another name"
        )
    merged = gathered[0][1]
    for _, other in gathered[1:]:
        merged = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(merged, other, strict=True)]
    return dict(zip(mine, merged, strict=True))


def _values(metrics: tuple[Metric, ...], merged: Mapping[str, list[Partial]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for prefix, found in merged.items():
        values |= {f"{prefix}{k}": v for k, v in evaluate(metrics, found[: len(metrics)]).items()}
    return values
