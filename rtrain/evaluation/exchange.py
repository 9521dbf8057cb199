"""Rows and small states between the ranks of the world."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

T = TypeVar("T")


def exchanged(columns: Mapping[str, NDArray[Any]], owner: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Columns [n] of this rank's rows -> those of the rows of which it is the owner, whoever had them; a collective.

    `owner`: int64 [n], the rank that is to have each row. They come by the rank that had them, of one rank in the order
    in which they were there. Over tensors, a column at a time: a rank is sent nothing but the rows that it owns.
    """
    world = dist.get_world_size()
    if world == 1:
        return dict(columns)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    order = np.argsort(owner, kind="stable")
    gives = torch.from_numpy(np.bincount(owner, minlength=world))
    takes = torch.empty_like(gives, device=device)
    dist.all_to_all_single(takes, gives.to(device))
    found = {}
    for name, values in columns.items():
        given = torch.from_numpy(values[order]).to(device)
        taken = given.new_empty(int(takes.sum()))
        dist.all_to_all_single(taken, given, takes.tolist(), gives.tolist())
        found[name] = taken.cpu().numpy()
    return found


def everyones(mine: T) -> list[T]:
    """What each rank has, in their order, on every rank; a collective. For what is small."""
    found = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found
