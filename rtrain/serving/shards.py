"""Tables that replicas do not hold: a deployment for each shard of them, which they ask for the rows that they need."""

import asyncio
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from fastapi import HTTPException
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from torch import Tensor

from rtrain.export.shards import Rows, Shard, joined, split

ROWS_S = 10.0
"""Seconds in which a shard has to have said its rows."""


@ray_serve.deployment(name="Tables", ray_actor_options={"num_cpus": 0.5})
class TableShard:
    """One shard."""

    def __init__(self, export: str, modules: Sequence[str]):
        """As `Ranker`'s."""
        torch.set_num_threads(1)
        for module in modules:
            import_module(module)
        self._shard = Shard(export)

    async def rows(self, wanted: Rows) -> Rows:
        """See `Shard.rows`."""
        return self._shard.rows(wanted)


class Elsewhere:
    """All shards, as who needs their rows has them."""

    def __init__(self, shards: Sequence[Any]):
        """`shards`: handles of deployments, in their order."""
        self._shards = list(shards)

    async def rows(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By name of a table its rows of such numbers.

        Raises:
            HTTPException: 503, a shard does not answer.
        """
        asked = split(wanted, len(self._shards))
        try:
            async with asyncio.timeout(ROWS_S):
                parts = await asyncio.gather(*map(self._asked, self._shards, asked))
        except (RayError, RayServeException, TimeoutError) as error:
            why = f"tables: one of {len(self._shards)} shards does not answer ({type(error).__name__}). Ask again"
            raise HTTPException(503, why, {"Retry-After": "1"}) from None
        return joined(wanted, parts, len(self._shards))

    @staticmethod
    async def _asked(shard: Any, wanted: Rows) -> Rows:
        if not wanted:
            return {}
        try:
            found: Rows = await shard.rows.remote(wanted)
        except RayActorError:  # it died over the question: a copy of it answers, or who comes after it
            found = await shard.rows.remote(wanted)
        return found
