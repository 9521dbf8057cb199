"""The most popular items: the least that a retrieval model must beat."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.errors import ConfigError
from rtrain.metrics.state import Retrieved, sampled_of
from rtrain.objectives.catalogue import CatalogueTally
from rtrain.objectives.ranks import Alone


def of_popular(split: Split, data: Samples[Any], often: NDArray[np.int64], metrics: Sequence[Any]) -> Retrieved:
    """For every user the items that were had most often in training, less those that the user had.

    `often`: int64 [items of the catalogue], how often each was had.
    """
    tally = CatalogueTally(lambda vectors: vectors, Alone(), metrics)
    for batch in data.scan(split, global_batch=len(often), rank=0, world_size=1):
        one = torch.ones(batch.rows, 1, 1)
        popularity = one if batch.items is None else torch.from_numpy(often).float()
        tally.add((one, popularity.view(-1, 1, 1, 1)), replace(batch, last=torch.zeros_like(batch.last)))
    return tally.scored()[0][""]


def refuse_sampled(metrics: Sequence[Any], items: int) -> None:
    """Refuse more drawn candidates than there are `items`, whose number the metrics' names would tell wrongly.

    Raises:
        ConfigError: there are fewer.
    """
    if sampled_of(metrics) >= items:
        raise ConfigError(
            f"metrics: sampled={sampled_of(metrics)} candidates of {items} items. Lower it, or leave it out: every "
            "item is ranked then"
        )
