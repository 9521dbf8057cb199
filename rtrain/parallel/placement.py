"""Where each table goes, as plain data: shown by `plan`, stored with the run, drawn in the report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rtrain.optim import Adagrad, RowWiseAdagrad, SparseOptim


@dataclass(frozen=True, kw_only=True)
class ShardPlacement:
    """One rectangle of a table on one rank."""

    rank: int
    offsets: tuple[int, int]
    """First row and first column."""
    sizes: tuple[int, int]
    """Rows and columns."""
    bytes: int
    """float32 weights."""


@dataclass(frozen=True, kw_only=True)
class TablePlacement:
    """One table, how it is split, and its shards."""

    table: str
    rows: int
    dim: int
    features: tuple[str, ...]
    sharding: str
    """table_wise, row_wise, column_wise or table_row_wise."""
    kernel: str
    bytes: int
    shards: tuple[ShardPlacement, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)


def state_bytes(optim: SparseOptim, shard: ShardPlacement) -> int:
    """Bytes of fused optimizer state beside one shard's weights."""
    if isinstance(optim, Adagrad):
        return shard.bytes
    return shard.sizes[0] * 4 if isinstance(optim, RowWiseAdagrad) else 0


def table_bytes(optim: SparseOptim, placed: Sequence[TablePlacement], world_size: int) -> list[dict[str, int]]:
    """Bytes of table weights and of their fused optimizer state on each rank."""
    totals = [{"rank": r, "tables": 0, "tables_optimizer": 0} for r in range(world_size)]
    for table in placed:
        for shard in table.shards:
            totals[shard.rank]["tables"] += shard.bytes
            totals[shard.rank]["tables_optimizer"] += state_bytes(optim, shard)
    return totals
