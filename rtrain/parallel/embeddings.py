"""Embedding tables over ranks: TorchRec's planner decides, TorchRec shards, rtrain names and fills.

Only the tables go to TorchRec's DistributedModelParallel. The dense tower goes elsewhere: handing
the whole model to DeepSpeed would broadcast every rank's shards over each other.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import CacheAlgorithm
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DataParallelWrapper
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import CacheParams, ShardingEnv, ShardingPlan

from rtrain.batch import NONE, Jagged
from rtrain.errors import ConfigError, RtrainError, RunFailed, one_line
from rtrain.mesh import Parallel, TableLayout, Wire
from rtrain.nn.bags import Tables
from rtrain.nn.tables import Table, fill
from rtrain.optim import SparseOptim
from rtrain.parallel.ahead import Travelling
from rtrain.parallel.chunks import Chunk, ReadChunk, weight_name, whole
from rtrain.parallel.first_vectors import read_vectors
from rtrain.parallel.placement import REPLICATED, ShardPlacement, TablePlacement
from rtrain.parallel.table_updates import PLANNED, counted_share, kernel_options, local_chunks, updates_of
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


def _sharders(**options: Any) -> list[Any]:
    return [_PooledSharder(**options), _SequenceSharder(**options)]


class _NoDataParallel(DataParallelWrapper):
    """Leaves everything that is not sharded alone; the dense tower is wrapped elsewhere."""

    def wrap(self, dmp: Any, env: ShardingEnv, device: torch.device) -> None:
        return None


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
) -> ShardingPlan:
    """TorchRec's plan for `tables`; pure arithmetic on the meta device, no process group needed.

    `memory_bytes_per_rank`: what tables and their optimizer may take.

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
        return planner.plan(module, _sharders(qcomm_codecs_registry=codecs.registry()))
    except PlannerError as error:
        biggest = max(tables, key=lambda t: t.bytes)
        total = sum(t.bytes for t in tables)
        raise ConfigError(
            f"tables: {total / MIB:,.1f} MiB of weights (largest: {biggest.name!r}, {biggest.bytes / MIB:,.1f} MiB) "
            f"and their optimizer state do not fit in {memory_bytes_per_rank / MIB:,.1f} MiB, what the dense part "
            f"leaves on each of {world_size} ranks. "
            f"Add workers, lower model.dim ({biggest.dim}), or split the rows with parallel.embeddings='row_wise'"
        ) from error


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
            )
        )
    return tuple(found)


class ShardedTables(nn.Module):
    """This rank's shards of all tables; `forward` and backward are collectives over all ranks.

    Backward is to be called within `updating`, once a step: there is no gradient to clip, scale or accumulate.
    """

    def __init__(
        self,
        tables: tuple[Table, ...],
        features: tuple[str, ...],
        plan: ShardingPlan,
        optim: SparseOptim,
        device: torch.device,
        *,
        wire: Wire = "float32",
        rows: int = 1,
    ):
        """`rows`: of a global batch; see `WireCodecs`."""
        super().__init__()
        self.codecs = WireCodecs(wire, rows=rows)
        self.by_key = {f"{t.path}.weight": t for t in tables}
        sharding: dict[str, Any] = {}
        for of_module in plan.plan.values():
            sharding.update(cast(Any, of_module))
        self.replicated = {t.name for t in tables if sharding[t.name].sharding_type == REPLICATED}
        """Tables that every rank has, of which one writes them."""
        group = dist.group.WORLD
        assert group is not None, "a process group comes first: see rtrain.launch"
        self.sharded = DistributedModelParallel(
            Tables(tables, features, "meta", as_kept=True),
            env=ShardingEnv.from_process_group(group),
            device=device,
            plan=deepcopy(plan),
            sharders=_sharders(fused_params=kernel_options(optim), qcomm_codecs_registry=self.codecs.registry()),
            init_data_parallel=False,
            data_parallel_wrapper=_NoDataParallel(),
        )
        cut = [(table, chunk) for table, chunk in self._weights() if table.name not in self.replicated]
        parameters = dict(self.sharded.named_parameters())
        uncut = [(t, parameters[key]) for key, t in self.by_key.items() if t.name in self.replicated]
        self.updates = updates_of(optim, self.sharded, self.by_key, cut, uncut, writes=dist.get_rank() == 0)

    def forward(self, ids: Jagged, longest: Mapping[str, int] = NONE) -> dict[str, torch.Tensor]:
        """As `rtrain.nn.bags.Tables.forward`, for this rank's rows."""
        return self.arrived(self.begin(ids), longest)

    def begin(self, ids: Jagged) -> Travelling:
        """Send ids to the ranks of their rows; several may be on their way."""
        return Travelling(cast(Tables, self.sharded.module), ids)

    def arrived(self, begun: Travelling, longest: Mapping[str, int] = NONE) -> dict[str, torch.Tensor]:
        """As `forward`, of what `begin` gave: the rows as they are now."""
        self.codecs.use(torch.is_grad_enabled())
        return cast(Tables, self.sharded.module).named_of(begun.ids, begun.vectors(), longest)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next backward; before its `forward`."""
        self.updates.set_lr(lr)

    def updating(self) -> AbstractContextManager[None]:
        """Around the backward of a step; behind it the rows are those after the step."""
        return self.updates.updating()

    def initialise(self, seed: int) -> None:
        """Fill this rank's shards with the rows that `seed` gives at every layout, or a table's own vectors.

        Raises:
            DataError: vectors that cannot be used, on every rank.
        """
        for table, chunk in self._weights():
            fill(chunk.data, table, seed, row=chunk.offsets[0], column=chunk.offsets[1])
        read_vectors(self.by_key.values(), self._weights())
        self.updates.begin()

    def chunks(self) -> Iterator[Chunk]:
        """This rank's share of weights and optimizer state; the tensors are views, not copies."""
        self.updates.catch_up()
        for table, chunk in self._weights():
            if table.name not in self.replicated or dist.get_rank() == 0:
                yield chunk
        yield from self.updates.chunks()

    def restore(self, read: ReadChunk) -> None:
        """Fill this rank's share from `read`, whatever layout wrote it."""
        for _, chunk in self._weights():
            chunk.data.copy_(read(chunk).reshape(chunk.data.shape))
        self.updates.restore(read)
        self.updates.begin()

    def _weights(self) -> Iterator[tuple[Table, Chunk]]:
        for key, tensor in self.sharded.state_dict().items():
            table = self.by_key[key]
            name = weight_name(f"tables.{table.path}.weight")
            chunks = [whole(name, tensor.detach())] if table.name in self.replicated else local_chunks(name, tensor)
            yield from ((table, chunk) for chunk in chunks)


def apply_tables(
    tables: tuple[Table, ...],
    features: tuple[str, ...],
    parallel: Parallel,
    optim: SparseOptim,
    device: torch.device,
    *,
    local_world_size: int,
    batch_per_rank: int,
    memory_bytes_per_rank: int,
) -> tuple[ShardedTables, tuple[TablePlacement, ...]]:
    """The tables over all ranks of the world, not yet filled, and where each lies; a collective.

    Raises:
        ConfigError: they do not fit.
    """
    # One rank plans for all, with the memory of the smallest: plans that differ would deadlock.
    least = torch.tensor([memory_bytes_per_rank], device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    agreed: list[ShardingPlan | RtrainError | None] = [None]
    if dist.get_rank() == 0:
        try:
            agreed[0] = plan_tables(
                tables,
                parallel,
                optim,
                world_size=dist.get_world_size(),
                local_world_size=local_world_size,
                device=device.type,
                batch_per_rank=batch_per_rank,
                memory_bytes_per_rank=int(least),
            )
        except ConfigError as error:
            agreed[0] = error
        except Exception as error:  # the others wait for a plan, and would until the group's time is out
            agreed[0] = RunFailed(f"rank 0 could not plan the tables: {one_line(error)}")
    dist.broadcast_object_list(agreed, src=0)
    if isinstance(agreed[0], RtrainError):
        raise agreed[0]
    plan = agreed[0]
    assert plan is not None, "rank 0 has sent it"
    rows = batch_per_rank * dist.get_world_size()
    sharded = ShardedTables(tables, features, plan, optim, device, wire=parallel.wire, rows=rows)
    return sharded, placements(plan, tables)
