"""Tables that every rank holds whole: the gradient of each, which DistributedDataParallel sums, and what it changes.

TorchRec looks them up by a kernel without an optimizer and wraps that in DDP, which divides by the number of ranks as
TorchRec does elsewhere. The optimizers here are those of the sharded tables over whole tensors: a row that was not read
has gradient zero, which changes neither it nor its accumulator.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rtrain.nn.tables import Table
from rtrain.optim import SGD, Adam, RowWiseAdagrad, SparseOptim
from rtrain.parallel.chunks import Chunk, Place, ReadChunk


class ReplicatedUpdates:
    """See `rtrain.parallel.table_updates.TableUpdates`."""

    def __init__(self, optim: SparseOptim, tables: Iterable[tuple[Table, nn.Parameter]], *, writes: bool):
        """`writes`: whether this rank writes what all have into checkpoints."""
        self.optim, self.lr = optim, optim.lr
        self.held: list[tuple[Place, nn.Parameter, nn.Parameter]] = []
        """Where each lies, TorchRec's parameter, and one over the same memory."""
        for table, parameter in tables:
            shape = (table.rows, table.dim)
            place = Place(name=f"tables.{table.path}", shape=shape, offsets=(0, 0), sizes=shape, writes=writes)
            self.held.append((place, parameter, nn.Parameter(parameter.detach().view(shape))))
        self.states: list[dict[str, Tensor]] = [_fresh(optim, own) for *_, own in self.held]
        self.adam = optim.build([own for *_, own in self.held]) if isinstance(optim, Adam) and self.held else None
        if self.adam:
            for (*_, own), state in zip(self.held, self.states, strict=True):
                self.adam.state[own] = state

    def set_lr(self, lr: float) -> None:
        """The rate of the next update."""
        self.lr = lr

    @contextmanager
    def updating(self) -> Iterator[None]:
        """No gradient before backward; behind it the update."""
        for _, parameter, _ in self.held:
            parameter.grad = None
        yield
        for _, parameter, own in self.held:
            assert parameter.grad is not None, "every lookup has a backward"
            own.grad = parameter.grad.detach().view(own.shape)
        if self.adam:
            self.adam.param_groups[0]["lr"] = self.lr
            self.adam.step()
        else:
            for (*_, own), state in zip(self.held, self.states, strict=True):
                self._descend(own, state)

    @torch.no_grad()
    def _descend(self, own: nn.Parameter, state: dict[str, Tensor]) -> None:
        grad = own.grad
        assert grad is not None, "given above"
        divisor = torch.ones((), device=own.device)
        if not isinstance(self.optim, SGD):
            sums, squares = state["momentum1"], grad.square()
            sums += squares.mean(1) if isinstance(self.optim, RowWiseAdagrad) else squares
            # Where eps is 0, of a row that was never read: nothing by as good as nothing is nothing.
            smallest = torch.finfo(torch.float32).tiny
            divisor = (sums.view(len(own), -1).sqrt() + getattr(self.optim, "eps", 0.0)).clamp(min=smallest)
        own.sub_(self.lr * grad / divisor)
        if self.optim.l2:
            own.mul_(torch.exp(-self.lr * self.optim.l2 / divisor))

    def begin(self) -> None:
        """What is held is what is looked up."""

    def catch_up(self) -> None:
        """No row is ever behind."""

    def chunks(self) -> Iterator[Chunk]:
        """As the sharded tables' optimizers have it, on the rank that writes."""
        for place, slot, value in self._states():
            if place.owns(value):
                yield _chunk(place, slot, value)

    def restore(self, read: ReadChunk) -> None:
        """Fill the state, on every rank."""
        for place, slot, value in self._states():
            value.copy_(read(_chunk(place, slot, value)).reshape(value.shape))

    def _states(self) -> Iterator[tuple[Place, str, Tensor]]:
        for (place, *_), state in zip(self.held, self.states, strict=True):
            for slot, value in state.items():
                yield place, slot, value


def _fresh(optim: SparseOptim, own: nn.Parameter) -> dict[str, Tensor]:
    """State before the first step, by the names that the sharded tables' have."""
    if isinstance(optim, Adam):
        return {
            "step": torch.zeros((), device=own.device),
            "exp_avg": torch.zeros_like(own, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(own, requires_grad=False),
        }
    if isinstance(optim, SGD):
        return {}
    shape = own.shape[:1] if isinstance(optim, RowWiseAdagrad) else own.shape
    return {"momentum1": torch.zeros(shape, device=own.device)}


def _chunk(place: Place, slot: str, value: Tensor) -> Chunk:
    chunk = place.state(slot, value)
    if value.dim() == 1:  # one number a row
        chunk.shape, chunk.offsets = tuple(value.shape), (0,)
    return chunk
