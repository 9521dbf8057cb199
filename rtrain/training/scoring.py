"""Score a split over all ranks; every rank gets the same exact metric values."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist

from rtrain.data.interactions import Dataset
from rtrain.data.split import Split
from rtrain.data.tokens import TokenDataset
from rtrain.errors import RunFailed
from rtrain.mesh import Mesh
from rtrain.metrics.state import Metric, Partial, evaluate
from rtrain.run import Run
from rtrain.training.engine import Engine
from rtrain.training.world import World


def scan(run: Run, dataset: Dataset | TokenDataset, split: Split, mesh: Mesh, world: World) -> Iterator[Any]:
    """This rank's share of a split, once, in file order; ranks of one replica get the same rows."""
    rank = mesh.coordinates(world.rank)["data"]
    return dataset.scan(split, global_batch=run.evaluation.batch, rank=rank, world_size=mesh.data)


def measure(engine: Engine, batches: Iterable[Any], metrics: tuple[Metric, ...]) -> dict[str, float]:
    """Metrics of a split, exact over ranks: states are merged in rank order, never averaged.

    Those of the schema's first label have the metrics' own names, those of a further one `<label>_<metric>`.

    Raises:
        RunFailed: on every rank, when any rank has a row whose logit is not a finite number: an
            order of rows would still come out of it, and look like a metric.
    """
    mine, broken = engine.score(batches)
    gathered: list[tuple[int, list[Partial]]] = [(0, [])] * engine.world.size
    dist.all_gather_object(gathered, (broken, [metric.partial(of) for of in mine.values() for metric in metrics]))
    broken = sum(count for count, _ in gathered)
    if broken:
        raise RunFailed(
            f"the model gives {broken} rows a logit that is not a finite number. Lower optim.lr or sparse_optim.lr, "
            "or set optim.clip_norm, and start anew with --fresh or under another name"
        )
    merged = gathered[0][1]
    for _, other in gathered[1:]:
        merged = [a + b for a, b in zip(merged, other, strict=True)]
    values: dict[str, float] = {}
    for number, prefix in enumerate(mine):
        of_task = evaluate(metrics, merged[number * len(metrics) : (number + 1) * len(metrics)])
        values |= {f"{prefix}{name}": value for name, value in of_task.items()}
    return values
