"""Tables that replicas do not hold: a deployment for each shard of them, which they ask for the rows that they need."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
AGAIN_S = 1.0
"""Seconds after which it is asked once more; its answer takes milliseconds."""


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
        """Its rows, of the first that says them: it is asked once more where it died over the question, or says nothing
        for long, for a copy of it may answer, or who comes after it."""
        if not wanted:
            return {}
        asked = [asyncio.create_task(_rows_of(shard, wanted))]
        try:
            await asyncio.wait(asked, timeout=AGAIN_S)
            first = asked[0]
            if first.done() and not isinstance(first.exception(), RayActorError):
                return first.result()
            asked.append(asyncio.create_task(_rows_of(shard, wanted)))
            for answer in asyncio.as_completed(asked):
                with suppress(RayActorError):
                    return await answer
            return await asked[-1]
        finally:
            for one in asked:
                one.cancel()


async def _rows_of(shard: Any, wanted: Rows) -> Rows:
    found: Rows = await shard.rows.remote(wanted)
    return found
