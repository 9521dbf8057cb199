"""Which rank is to have each row: so that groups are whole, or so that ranks have ranges of scores.

Shape legend: n rows of this rank, N of all W ranks.
"""

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from rtrain.evaluation.exchange import everyones
from rtrain.keyed import drawn
from rtrain.metrics.state import Floats

SAMPLES = 64
"""Scores that each rank shows for each rank: a range has at most N / W * (1 + 2 / SAMPLES) rows, and one score's."""


def by_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [n]: by hash, the same rank for the same group. About N / W rows a rank, and the largest group's."""
    return (drawn(groups) % np.uint64(dist.get_world_size())).astype(np.int64)


def by_score(logits: Floats) -> NDArray[np.int64]:
    """int64 [n]: the highest scores to rank 0, equal ones to one rank; a collective.

    Each rank shows scores at even distances in its own order (Shi & Schaeffer, "Parallel sorting by regular sampling",
    1992); each stands for as many rows as lie between two of them.
    """
    world, rows = dist.get_world_size(), len(logits)
    if world == 1:
        return np.zeros(rows, np.int64)
    falling, shown = -logits, min(rows, SAMPLES * world)
    places = ((np.arange(shown) + 0.5) * (rows / max(1, shown))).astype(np.int64)
    samples = everyones((rows, np.sort(falling)[places]))
    scores = np.concatenate([of_rank for _, of_rank in samples])
    if not len(scores):
        return np.zeros(rows, np.int64)
    stands_for = np.concatenate([np.full(len(of_rank), count / max(1, len(of_rank))) for count, of_rank in samples])
    order = np.argsort(scores, kind="stable")
    so_far = np.cumsum(stands_for[order])
    splits = np.searchsorted(so_far, so_far[-1] * np.arange(1, world) / world)
    return np.searchsorted(scores[order][splits], falling).astype(np.int64)
