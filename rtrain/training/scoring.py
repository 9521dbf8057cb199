"""Score a split over all ranks; every rank gets the same exact metric values."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch.distributed as dist

from rtrain.data.interactions import Dataset
from rtrain.data.split import Split
from rtrain.errors import RunFailed
from rtrain.metrics.state import Metric, Partial, Scored, evaluate
from rtrain.run import Run
from rtrain.schema import Batch
from rtrain.training.replica import Replica
from rtrain.training.world import World


def scan(run: Run, dataset: Dataset, split: Split, world: World) -> Iterator[Batch]:
    """This rank's share of a split, once, in file order."""
    return dataset.scan(split, global_batch=run.evaluation.batch, rank=world.rank, world_size=world.size)


def score(replica: Replica, batches: Iterable[Batch]) -> tuple[Scored, ...]:
    """This rank's rows of a split, scored for each label that they have. A collective over all ranks."""
    scores, labels, groups = [], [], []
    for batch in batches:
        probabilities = replica.predict(batch.to(replica.world.device)).cpu()
        scores.append(probabilities.double().numpy())
        labels.append(batch.label.double().numpy())
        groups.append(batch.group.numpy())
    tasks = len(replica.run.data.schema.labels)
    scores_NL, labels_NL = (np.concatenate(parts).reshape(-1, tasks) for parts in (scores, labels))
    groups_N = np.concatenate(groups)
    scored = []
    for task in range(tasks):
        known = ~np.isnan(labels_NL[:, task])
        scored.append(Scored(scores=scores_NL[known, task], labels=labels_NL[known, task], groups=groups_N[known]))
    return tuple(scored)


def measure(replica: Replica, batches: Iterable[Batch], metrics: tuple[Metric, ...]) -> dict[str, float]:
    """Metrics of a split, exact over ranks: states are merged in rank order, never averaged.

    Those of the schema's first label have the metrics' own names, those of a further one `<label>_<metric>`.

    Raises:
        RunFailed: on every rank, when any rank has a row whose probability is not a number: an order
            of rows would still come out of it, and look like a metric.
    """
    mine = score(replica, batches)
    broken = sum(int(np.count_nonzero(~np.isfinite(task.scores))) for task in mine)
    gathered: list[tuple[int, list[Partial]]] = [(0, [])] * replica.world.size
    dist.all_gather_object(gathered, (broken, [metric.partial(task) for task in mine for metric in metrics]))
    broken = sum(count for count, _ in gathered)
    if broken:
        raise RunFailed(
            f"the model gives {broken} rows a probability that is not a number. Lower optim.lr or sparse_optim.lr, "
            "or set optim.clip_norm, and start anew with --fresh or under another name"
        )
    merged = gathered[0][1]
    for _, other in gathered[1:]:
        merged = [a + b for a, b in zip(merged, other, strict=True)]
    values: dict[str, float] = {}
    for number, label in enumerate(replica.run.data.schema.labels):
        of_task = evaluate(metrics, merged[number * len(metrics) : (number + 1) * len(metrics)])
        values |= of_task if number == 0 else {f"{label.name}_{name}": value for name, value in of_task.items()}
    return values
