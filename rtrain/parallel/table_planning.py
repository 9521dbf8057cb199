"""Where tables go: what TorchRec's planner may choose from, what it is told, and its plan as plain data."""

from typing import Any, cast

from fbgemm_gpu.split_table_batched_embeddings_ops_common import CacheAlgorithm
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import CacheParams, ShardingPlan

from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, TableLayout
from rtrain.nn.bags import Tables
from rtrain.nn.tables import Table
from rtrain.optim import SparseOptim
from rtrain.parallel.placement import REPLICATED, ShardPlacement, TablePlacement
from rtrain.parallel.table_updates import PLANNED, counted_share
from rtrain.parallel.wire import WireCodecs
from rtrain.rounding import ceil_div

# The planner's own choice is held to what equals one process to 1e-5; on CPU row-wise must be added
# by hand, since the stock sharder leaves it out there.
CHOICES = {
    "sharded": ["table_wise", "row_wise"],
    "table_wise": ["table_wise"],
    "row_wise": ["row_wise"],
    "column_wise": ["column_wise"],
    "table_row_wise": ["table_row_wise"],
    REPLICATED: [REPLICATED],
}
MIB = 1024**2


SPLIT_FROM = 256 * MIB
"""A table of fewer bytes is not worth a collective of its own rows."""
SPLIT_SHARE = 0.3
"""Of an even share of all tables: a larger one is split where the planner chooses, so that no rank has much more."""


def split_from(tables: tuple[Table, ...], world_size: int) -> float:
    """Bytes from which on a table that the planner may place is split by rows, lest one rank hold it."""
    return max(SPLIT_FROM, SPLIT_SHARE * sum(t.bytes for t in tables) / world_size)


def sharding_types(
    table: Table, embeddings: str, world_size: int, local_world_size: int, *, whole_below: float = float("inf")
) -> list[str]:
    """What the planner may choose from for one table; it stays whole by choice if it has less than `whole_below` bytes.

    Rows go over the ranks, of the world or of a node, in equal blocks. Where that leaves the last rank none, fbgemm's
    CPU kernels fail in backward, so such a table (it has few rows) stays whole on one rank. So does one of four columns
    by columns.
    """
    types = CHOICES["table_wise" if table.beside and embeddings == "column_wise" else embeddings]
    if embeddings == "sharded" and table.bytes >= whole_below:
        types = CHOICES["row_wise"]
    for by_rows, ranks in (("row_wise", world_size), ("table_row_wise", local_world_size)):
        if ceil_div(table.rows, ranks) * (ranks - 1) >= table.rows:
            types = [t for t in types if t != by_rows] or ["table_wise"]
    return types


def kernel_of(layout: TableLayout) -> str:
    """Of TorchRec's, whose fused ones have no table that other ranks have too."""
    return "dense" if layout.embeddings == REPLICATED else layout.kernel


def cache_of(layout: TableLayout) -> CacheParams | None:
    """What fbgemm is told of a table's cache; what is none there is its own."""
    if layout.kernel != "fused_uvm_caching":
        return None
    policies = {"lru": CacheAlgorithm.LRU, "lfu": CacheAlgorithm.LFU}
    return CacheParams(
        algorithm=policies[layout.cache_policy] if layout.cache_policy else None,
        load_factor=layout.cache_fraction,
        reserved_memory=layout.cache_spare_gb,
    )


class _PooledSharder(EmbeddingBagCollectionSharder):
    """The stock sharder with the sharding types of `CHOICES` on every device."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise", "column_wise", "table_row_wise", REPLICATED]


class _SequenceSharder(EmbeddingCollectionSharder):
    """The same for tables without pooling, less data_parallel, whose splits are wrong on CPU."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise", "column_wise"]


def sharders(**options: Any) -> list[Any]:
    """Of pooled and of unpooled tables, with `options` of TorchRec's."""
    return [_PooledSharder(**options), _SequenceSharder(**options)]


def plan_tables(
    tables: tuple[Table, ...],
    parallel: Parallel,
    optim: SparseOptim,
    *,
    world_size: int,
    local_world_size: int,
    device: str,
    batch_per_rank: int,
    memory_bytes_per_rank: int,
    activations_bytes: int = 0,
    memory_from: str = "",
) -> ShardingPlan:
    """TorchRec's plan for `tables`; pure arithmetic on the meta device, no process group needed.

    `memory_bytes_per_rank`: what tables, their optimizer, and a step's ids and looked-up vectors may take.
    `activations_bytes`: what else a step keeps, which is taken off already, and `memory_from`: how much a rank has, and
    how that is known; a message says both.

    Raises:
        ConfigError: the tables do not fit, with the three ways out.
    """
    if world_size % local_world_size and any(parallel.embeddings_of(t.name) == "table_row_wise" for t in tables):
        raise ConfigError(
            f"parallel.embeddings: table_row_wise splits tables over the ranks of a node, but {world_size} ranks are "
            f"not nodes of {local_world_size} each. Give each node as many, or use 'row_wise'"
        )
    module = Tables(tables, tuple(f for t in tables for f in t.features), "meta", as_kept=True)
    for parameter in module.parameters():
        cast(Any, parameter)._optimizer_classes = [PLANNED[type(optim)]]  # whose state the planner counts beside it
    whole_below = split_from(tables, world_size)
    counted = int(memory_bytes_per_rank * min(counted_share(optim, t) for t in tables))
    memory = {"ddr_cap": counted} if device == "cpu" else {"hbm_cap": counted}
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world_size, local_world_size=local_world_size, compute_device=device, **cast(Any, memory)
        ),
        batch_size=batch_per_rank,
        storage_reservation=FixedPercentageStorageReservation(0.05),
        constraints={
            t.name: ParameterConstraints(
                sharding_types=sharding_types(
                    t, parallel.embeddings_of(t.name), world_size, local_world_size, whole_below=whole_below
                ),
                compute_kernels=[kernel_of(parallel.layout_of(t.name))],
                cache_params=cache_of(parallel.layout_of(t.name)),
                pooling_factors=list(t.mean_lengths or (1.0,) * len(t.features)),
            )
            for t in tables
        },
        debug=False,
    )
    try:
        codecs = WireCodecs(parallel.wire, rows=batch_per_rank * world_size)
        return planner.plan(module, sharders(qcomm_codecs_registry=codecs.registry()))
    except PlannerError as error:
        asked = (tables, parallel, world_size, batch_per_rank, memory_bytes_per_rank, activations_bytes, memory_from)
        raise ConfigError(_does_not_fit(*asked)) from error


def _does_not_fit(
    tables: tuple[Table, ...],
    parallel: Parallel,
    world_size: int,
    batch_per_rank: int,
    memory_bytes_per_rank: int,
    activations_bytes: int,
    memory_from: str,
) -> str:
    """What the planner could not place, and the ways out that are open."""
    biggest, total = max(tables, key=lambda t: t.bytes), sum(t.bytes for t in tables)
    split = parallel.embeddings_of(biggest.name) in ("sharded", "row_wise", "table_row_wise")
    even = f", {total / world_size / MIB:,.1f} MiB a rank if even" if world_size > 1 else ""
    rows = "" if split else ", or split the rows with parallel.embeddings='row_wise'"
    taken, parts, of = "the dense part leaves", "", f" ({memory_from})" if memory_from else ""
    if activations_bytes:
        taken = f"the dense part and {activations_bytes / MIB:,.1f} MiB of activations leave"
        parts = ", raise parallel.microbatches"
    return (
        f"tables: {total / MIB:,.1f} MiB of weights{even} (largest: {biggest.name!r}, {biggest.bytes / MIB:,.1f} MiB), "
        f"their optimizer state, and the ids and vectors of a step of {batch_per_rank:,} rows a rank do not fit in "
        f"{memory_bytes_per_rank / MIB:,.1f} MiB, what {taken} on each of {world_size} ranks{of}; 5 % of it stays "
        f"free. Add workers{parts}, lower global_batch or model.dim ({biggest.dim}){rows}"
    )


def placements(plan: ShardingPlan, tables: tuple[Table, ...]) -> tuple[TablePlacement, ...]:
    """The plan as plain data, in the order of `tables`."""
    parameters: dict[str, Any] = {}
    for module in plan.plan.values():
        parameters.update(cast(Any, module))
    found = []
    for table in tables:
        sharding = parameters[table.name]
        whole_table = [(rank, (0, 0), (table.rows, table.dim)) for rank in sharding.ranks or ()]
        rectangles = (
            whole_table
            if sharding.sharding_type == REPLICATED
            else [(s.placement.rank(), s.shard_offsets, s.shard_sizes) for s in sharding.sharding_spec.shards]
        )
        shards = tuple(
            ShardPlacement(
                rank=rank,
                offsets=(offsets[0], offsets[1]),
                sizes=(sizes[0], sizes[1]),
                bytes=sizes[0] * sizes[1] * table.item_bytes,
            )
            for rank, offsets, sizes in rectangles
        )
        found.append(
            TablePlacement(
                table=table.name,
                rows=table.rows,
                dim=table.dim,
                features=table.features,
                sharding=sharding.sharding_type,
                kernel=sharding.compute_kernel,
                bytes=table.bytes,
                shards=shards,
                mapped=table.managed is not None and not table.beside,
            )
        )
    return tuple(found)
