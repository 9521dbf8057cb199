"""Embedding tables as a model declares them, and the numbers that they start from.

Light to import: configs and plans need no torchrec, which takes seconds to load (see `nn.bags`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding table and the features that read it."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    pooling: Literal["mean", "sum"] = "mean"
    bound: float | None = None
    """Rows start uniform in [-bound, bound]; none: 1 / sqrt(rows), as in DLRM."""

    @property
    def bytes(self) -> int:
        """float32 weights."""
        return self.rows * self.dim * 4


BLOCK_ROWS = 4096


def initial_rows(table: Table, seed: int, start: int, stop: int) -> Tensor:
    """Rows start..stop-1 of a fresh table, float32 [stop - start, dim].

    Drawn in blocks whose generator is seeded by (seed, table, block), so that any shard of any
    layout starts from the same numbers without anybody ever holding the whole table.
    """
    bound = table.bound if table.bound is not None else table.rows**-0.5
    salt = int.from_bytes(table.name.encode()[:64], "big") % (2**31 - 1)
    pieces = [torch.empty(0, table.dim)]  # for a shard without rows: more ranks than rows
    for block in range(start // BLOCK_ROWS, (stop - 1) // BLOCK_ROWS + 1):
        first = block * BLOCK_ROWS
        rows = min(BLOCK_ROWS, table.rows - first)
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + salt) * 1_000_003 + block) % 2**63)
        drawn = torch.empty(rows, table.dim).uniform_(-bound, bound, generator=generator)
        pieces.append(drawn[max(start - first, 0) : stop - first])
    return torch.cat(pieces)
