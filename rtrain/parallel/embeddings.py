"""Embedding tables over ranks: TorchRec shards as its planner decided, rtrain names and fills.

Only the tables go to TorchRec's DistributedModelParallel. The dense tower goes elsewhere: handing
the whole model to DeepSpeed would broadcast every rank's shards over each other.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DataParallelWrapper
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from rtrain.batch import NONE, Jagged
from rtrain.errors import ConfigError, RtrainError, RunFailed, one_line
from rtrain.mesh import Parallel, Wire
from rtrain.nn.bags import Tables
from rtrain.nn.tables import Table, fill
from rtrain.optim import SparseOptim
from rtrain.parallel.ahead import Travelling
from rtrain.parallel.chunks import Chunk, ReadChunk, state_name, weight_name, whole
from rtrain.parallel.first_vectors import read_vectors
from rtrain.parallel.placement import REPLICATED, TablePlacement
from rtrain.parallel.table_planning import placements, plan_tables, sharders
from rtrain.parallel.table_updates import kernel_options, local_chunks, updates_of
from rtrain.parallel.turnover import Turnover, first_rows
from rtrain.parallel.wire import WireCodecs


class _NoDataParallel(DataParallelWrapper):
    """Leaves everything that is not sharded alone; the dense tower is wrapped elsewhere."""

    def wrap(self, dmp: Any, env: ShardingEnv, device: torch.device) -> None:
        return None


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
        seed: int = 0,
    ):
        """`rows`: of a global batch; see `WireCodecs`. `seed`: of first weights."""
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
            sharders=sharders(fused_params=kernel_options(optim), qcomm_codecs_registry=self.codecs.registry()),
            init_data_parallel=False,
            data_parallel_wrapper=_NoDataParallel(),
        )
        cut = [(table, chunk) for table, chunk in self._weights() if table.name not in self.replicated]
        parameters = dict(self.sharded.named_parameters())
        uncut = [(t, parameters[key]) for key, t in self.by_key.items() if t.name in self.replicated]
        self.updates = updates_of(optim, self.sharded, self.by_key, cut, uncut, writes=dist.get_rank() == 0)
        self.seed = seed
        self.turnover = Turnover(tables, device, self._renew) if any(t.managed for t in tables) else None

    def forward(self, ids: Jagged, longest: Mapping[str, int] = NONE) -> dict[str, torch.Tensor]:
        """As `rtrain.nn.bags.Tables.forward`, for this rank's rows."""
        return self.arrived(self.begin(ids), longest)

    def begin(self, ids: Jagged) -> Travelling:
        """Send ids to the ranks of their rows; several may be on their way."""
        if self.turnover:
            ids = self.turnover.ids(ids)
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

    def saw(self, ids: Jagged) -> None:
        """Ids of a step's rows that no other rank counts: what managed tables rank values by."""
        if self.turnover:
            self.turnover.saw(ids)

    def turns(self, step: int) -> bool:
        """Whether rows of managed tables change hands behind `step`: ids of the next may not travel before."""
        return self.turnover is not None and self.turnover.due(step)

    def stepped(self, step: int) -> None:
        """The rows are those after `step`; a collective where it `turns`."""
        if self.turnover:
            self.turnover.stepped(step)

    def _renew(self, table: Table, rows: torch.Tensor) -> None:
        """See `turnover.Renew`."""
        self.updates.catch_up()
        fresh = first_rows(table, self.seed, rows)
        states = state_name(f"tables.{table.path}", "")
        for chunk in [c for own, c in self._weights() if own is table]:
            (first, column), (count, columns) = chunk.offsets, chunk.data.shape
            here = (rows >= first) & (rows < first + count)
            drawn = fresh[here, column : column + columns].to(chunk.data)
            chunk.data[(rows[here] - first).to(chunk.data.device)] = drawn
        for chunk in self.updates.chunks():
            if chunk.name.startswith(states) and chunk.data.dim():
                here = (rows >= chunk.offsets[0]) & (rows < chunk.offsets[0] + len(chunk.data))
                chunk.data[(rows[here] - chunk.offsets[0]).to(chunk.data.device)] = 0
        self.updates.begin()

    def initialise(self) -> None:
        """Fill this rank's shards with the rows that the seed gives at every layout, or a table's own vectors.

        Raises:
            DataError: vectors that cannot be used, on every rank.
        """
        for table, chunk in self._weights():
            fill(chunk.data, table, self.seed, row=chunk.offsets[0], column=chunk.offsets[1])
        read_vectors(self.by_key.values(), self._weights())
        self.updates.begin()

    def chunks(self) -> Iterator[Chunk]:
        """This rank's share of weights and optimizer state; the tensors are views, not copies."""
        self.updates.catch_up()
        for table, chunk in self._weights():
            if table.name not in self.replicated or dist.get_rank() == 0:
                yield chunk
        yield from self.updates.chunks()
        if self.turnover:
            yield from self.turnover.chunks()

    def restore(self, read: ReadChunk) -> None:
        """Fill this rank's share from `read`, whatever layout wrote it."""
        for _, chunk in self._weights():
            chunk.data.copy_(read(chunk).reshape(chunk.data.shape))
        self.updates.restore(read)
        self.updates.begin()
        if self.turnover:
            self.turnover.restore(read)

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
    activations_bytes: int = 0,
    seed: int = 0,
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
                activations_bytes=activations_bytes,
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
    sharded = ShardedTables(tables, features, plan, optim, device, wire=parallel.wire, rows=rows, seed=seed)
    return sharded, placements(plan, tables)
