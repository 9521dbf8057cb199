"""How gradients get into sharded tables: by the kernel's own optimizer in its backward, or by torch's Adam after it.

The two kinds have one face, `TableUpdates`; which kind an optimizer of `rtrain.optim` has is said here alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as PlannedRowWiseAdagrad

from rtrain.errors import ConfigError
from rtrain.nn.tables import Table
from rtrain.optim import SGD, Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.parallel.chunks import Chunk, ReadChunk, state_name
from rtrain.parallel.every_row import AdamUpdates
from rtrain.parallel.replicated import ReplicatedUpdates
from rtrain.parallel.shrinkage import Shrinkage

PLANNED: dict[type, type[torch.optim.Optimizer]] = {
    RowWiseAdagrad: PlannedRowWiseAdagrad,
    Adagrad: torch.optim.Adagrad,
    SGD: torch.optim.SGD,
    Adam: torch.optim.Adam,
}
"""What TorchRec's planner knows our optimizers as, and counts the state of."""


def counted_share(optim: SparseOptim, table: Table) -> float:
    """What the planner counts of a table's weights and state, as a share of what they take.

    It counts Adam's moments, but not the weights put aside, and takes state to be of the weights' dtype: it is float32.
    """
    if isinstance(optim, Adam):
        return 3 / 4
    slots = {RowWiseAdagrad: 1 / table.dim, Adagrad: 1.0}.get(type(optim), 0.0)
    return table.item_bytes * (1 + slots) / (table.item_bytes + 4 * slots)


class TableUpdates(Protocol):
    """Of all shards that this rank has."""

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next update; before the lookup whose backward it is of."""

    def updating(self) -> AbstractContextManager[None]:
        """Around the backward of a step's lookup; behind it the rows are those after the step."""

    def begin(self) -> None:
        """The rows are fresh, or as stored."""

    def catch_up(self) -> None:
        """The rows are about to be stored: bring every one up to the last step."""

    def chunks(self) -> Iterator[Chunk]:
        """The optimizer state that this rank writes; the tensors are views, not copies."""

    def restore(self, read: ReadChunk) -> None:
        """Fill the state from `read`."""


def kernel_options(optim: SparseOptim) -> dict[str, Any]:
    """What fbgemm's kernels are to do in their backward."""
    if isinstance(optim, Adam):
        return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": AdamUpdates.KERNEL_LR}
    if isinstance(optim, RowWiseAdagrad):
        return {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": optim.lr, "eps": optim.eps}
    if isinstance(optim, Adagrad):
        return {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": optim.lr, "eps": optim.eps}
    if isinstance(optim, SGD):
        return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": optim.lr}
    raise ConfigError(
        f"sparse_optim: tables have no {type(optim).__name__} here. Use RowWiseAdagrad, Adagrad, SGD or Adam"
    )


def updates_of(
    optim: SparseOptim,
    sharded: DistributedModelParallel,
    by_key: Mapping[str, Table],
    weights: Iterable[tuple[Table, Chunk]],
    replicated: Sequence[tuple[Table, nn.Parameter]],
    *,
    writes: bool,
) -> TableUpdates:
    """Of tables whose kernels have `kernel_options(optim)`, and of those that every rank has whole.

    `by_key`: every table by its name in the state of `sharded`; `weights`: this rank's shards of them; `replicated`:
    the others, and whether this rank `writes` them.
    """
    of_shards = AdamUpdates(optim, weights) if isinstance(optim, Adam) else FusedUpdates(optim, sharded, by_key)
    return _Both((of_shards, ReplicatedUpdates(optim, replicated, writes=writes))) if replicated else of_shards


class _Both:
    """See `TableUpdates`."""

    def __init__(self, parts: tuple[TableUpdates, TableUpdates]):
        self.parts = parts

    def set_lr(self, lr: float) -> None:
        for part in self.parts:
            part.set_lr(lr)

    @contextmanager
    def updating(self) -> Iterator[None]:
        with self.parts[0].updating(), self.parts[1].updating():
            yield

    def begin(self) -> None:
        for part in self.parts:
            part.begin()

    def catch_up(self) -> None:
        for part in self.parts:
            part.catch_up()

    def chunks(self) -> Iterator[Chunk]:
        for part in self.parts:
            yield from part.chunks()

    def restore(self, read: ReadChunk) -> None:
        for part in self.parts:
            part.restore(read)


class FusedUpdates:
    """The kernels' optimizer: backward updates the rows that were read, and no gradient is ever there."""

    def __init__(self, optim: SparseOptim, sharded: DistributedModelParallel, by_key: Mapping[str, Table]):
        self.lr, self.fused, self.by_key = optim.lr, sharded.fused_optimizer, by_key
        self.shrinkage = Shrinkage(sharded, optim) if optim.l2 else None

    def set_lr(self, lr: float) -> None:
        """See `TableUpdates`."""
        if lr != self.lr:
            self.lr = lr
            for group in self.fused.param_groups:
                group["lr"] = lr
            self.fused.step()  # hands the rate to the kernels; the update itself is in backward

    @contextmanager
    def updating(self) -> Iterator[None]:
        """See `TableUpdates`."""
        yield
        if self.shrinkage:
            self.shrinkage.stepped(self.lr)

    def begin(self) -> None:
        """See `TableUpdates`."""
        if self.shrinkage:
            self.shrinkage.begin()

    def catch_up(self) -> None:
        """See `TableUpdates`."""
        if self.shrinkage:
            self.shrinkage.catch_up()

    def chunks(self) -> Iterator[Chunk]:
        """See `TableUpdates`."""
        for key, states in self.fused.state_dict()["state"].items():
            table = self.by_key[key]
            for slot, tensor in states.items():
                # fbgemm calls the accumulator `<table>.momentum1` for every optimizer.
                if isinstance(tensor, ShardedTensor):
                    name = state_name(f"tables.{table.path}", slot.removeprefix(f"{table.name}."))
                    yield from local_chunks(name, tensor)

    def restore(self, read: ReadChunk) -> None:
        """See `TableUpdates`."""
        for chunk in self.chunks():
            chunk.data.copy_(read(chunk).reshape(chunk.data.shape))


def local_chunks(name: str, tensor: Any) -> Iterator[Chunk]:
    """This rank's shards of what TorchRec gives as one tensor."""
    if not isinstance(tensor, ShardedTensor):
        raise TypeError(f"{name}: expected a ShardedTensor from torchrec, got {type(tensor).__name__}")
    for shard in tensor.local_shards():
        yield Chunk(
            name=name,
            shape=tuple(tensor.size()),
            offsets=tuple(shard.metadata.shard_offsets),
            data=shard.tensor.detach().view(tuple(shard.metadata.shard_sizes)),
        )
