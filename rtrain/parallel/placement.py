"""Where each table goes, as plain data: shown by `plan`, stored with the run, drawn in the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rtrain.mesh import Mesh, Parallel
from rtrain.optim import Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.rounding import ceil_div

REPLICATED = "data_parallel"
"""The sharding of a table that every rank has whole."""


MAP_BYTES, MAP_STORED_BYTES = 32, 16
"""Of a row of a managed table, whose value and score are stored, and whose value is sorted beside its row."""


@dataclass(frozen=True, kw_only=True)
class ShardPlacement:
    """One rectangle of a table on one rank."""

    rank: int
    offsets: tuple[int, int]
    """First row and first column."""
    sizes: tuple[int, int]
    """Rows and columns."""
    bytes: int
    """Of its weights."""

    @property
    def elements(self) -> int:
        """How many weights."""
        return self.sizes[0] * self.sizes[1]


@dataclass(frozen=True, kw_only=True)
class TablePlacement:
    """One table, how it is split, and its shards."""

    table: str
    rows: int
    dim: int
    features: tuple[str, ...]
    sharding: str
    """table_wise, row_wise, column_wise, table_row_wise or data_parallel."""
    kernel: str
    bytes: int
    shards: tuple[ShardPlacement, ...]
    mapped: bool = False
    """Whether every rank has a map of its ids (`Managed`), `MAP_BYTES` a row."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)


def state_bytes(optim: SparseOptim, shard: ShardPlacement) -> int:
    """Bytes beside one shard's weights: the optimizer's, float32, and with `l2` up to when each row is caught up.

    Adam has two moments, and puts the weights aside while their gradients are in their place.
    """
    if isinstance(optim, Adam):
        return 3 * 4 * shard.elements
    caught_up = shard.sizes[0] * 8 if optim.l2 else 0
    if isinstance(optim, Adagrad):
        return 4 * shard.elements + caught_up
    return caught_up + (shard.sizes[0] * 4 if isinstance(optim, RowWiseAdagrad) else 0)


def bytes_per_rank(
    parallel: Parallel,
    optim: SparseOptim,
    placed: Sequence[TablePlacement],
    mesh: Mesh,
    *,
    dense_parameters: Sequence[int],
) -> list[dict[str, int]]:
    """Bytes on each rank: parameters, gradients, optimizer (dense part), tables, tables_optimizer.

    Of tables in unified memory only what the device's has is counted. All is float32, but the weights of tables of 16
    bits. `dense_parameters`: elements of the dense weights that each rank would hold without ZeRO. ZeRO-1 and 2 keep a
    partitioned master copy of the weights, counted as parameters. Several microbatches, as in a pipeline, gather whole
    gradients before they are partitioned.
    """
    stage = parallel.zero_stage if parallel.dense == "zero" else 0
    totals = []
    for rank, count in enumerate(dense_parameters):
        share = ceil_div(count, mesh.data)
        whole_gradients = stage < 2 or parallel.microbatches > 1
        totals.append(
            {
                "rank": rank,
                "parameters": 4 * (share if stage == 3 else count) + (4 * share if stage in (1, 2) else 0),
                "gradients": 4 * (count if whole_gradients else share),
                "optimizer": 8 * (share if stage >= 1 else count),
                "tables": 0,
                "tables_optimizer": 0,
            }
        )
    for table in placed:
        for row in totals if table.mapped else ():
            row["tables"] += MAP_BYTES * table.rows
        for shard in table.shards:
            here = parallel.layout_of(table.table).device_share
            totals[shard.rank]["tables"] += int(here * shard.bytes)
            # Of a whole table there is a gradient, and a copy of it in DDP's bucket.
            gradients = 8 * shard.elements if table.sharding == REPLICATED else 0
            totals[shard.rank]["tables_optimizer"] += int(here * state_bytes(optim, shard)) + gradients
    return totals


def copied_bytes(
    optim: SparseOptim, placed: Sequence[TablePlacement], mesh: Mesh, *, dense_parameters: Sequence[int]
) -> list[int]:
    """Bytes that each rank copies to the host, and keeps there, so that a checkpoint is written behind training.

    That is what it writes: of its shards weights and state, and of the dense part, which ranks along the data axis have
    in common, the first of them weights and both moments, also under ZeRO.
    """
    copied = [0 if mesh.coordinates(rank)["data"] else 3 * 4 * count for rank, count in enumerate(dense_parameters)]
    slots = {Adam: (0, 2), Adagrad: (0, 1), RowWiseAdagrad: (1, 0)}
    of_row, of_element = slots.get(type(optim), (0, 0))
    for table in placed:
        copied[0] += MAP_STORED_BYTES * table.rows * table.mapped
        for shard in table.shards:
            if table.sharding != REPLICATED or shard.rank == 0:
                copied[shard.rank] += shard.bytes + 4 * (of_row * shard.sizes[0] + of_element * shard.elements)
    return copied


def left_for_tables(
    memory: int,
    parallel: Parallel,
    optim: SparseOptim,
    mesh: Mesh,
    *,
    dense_parameters: Sequence[int],
    activations: Sequence[int],
) -> int:
    """Bytes of a rank's `memory` that dense part and step do not take, on the rank where they are most; at least 0.

    `activations`: what each rank keeps during a step beside ids and looked-up vectors, which the planner counts itself.
    """
    dense = bytes_per_rank(parallel, optim, (), mesh, dense_parameters=dense_parameters)
    return max(0, memory - max(total_bytes(row) + kept for row, kept in zip(dense, activations, strict=True)))


def total_bytes(row: Mapping[str, int]) -> int:
    """All that a row of `bytes_per_rank` counts."""
    return sum(count for kind, count in row.items() if kind != "rank")
