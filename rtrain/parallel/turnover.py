"""Managed tables while they train: what is seen is counted, and now and then rows go from rare values to frequent ones.

Every rank has the whole map and ranks it alike, from counts summed over all ranks: what it says depends on the global
batches alone. Between two rankings nobody talks about it.

Shape legend: R rows of a table, S values seen since the last ranking.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from rtrain.batch import Jagged
from rtrain.managed import Managed
from rtrain.nn.managed import ManagedIds
from rtrain.nn.tables import BLOCK_ROWS, Table, initial_rows
from rtrain.parallel.chunks import Chunk, ReadChunk, state_name, weight_name, whole

Renew = Callable[[Table, Tensor], None]
"""Begins rows of a table again, on whichever ranks they lie: int64, in rising order."""
COMPACTED_AFTER = 32
"""Steps whose ids are kept as they came before equal ones are counted together."""


class Turnover:
    """Of all managed tables of a model; the same on every rank but for what each has seen itself."""

    def __init__(self, tables: tuple[Table, ...], device: torch.device, renew: Renew):
        self.ids = ManagedIds(tables, device)
        self.renew = renew
        self.maps = [_Map(table, self.ids, device) for table in tables if table.name in self.ids.features]
        self.renewed = {
            m.table.name: [t for t in tables if t.managed and t.features == m.table.features] for m in self.maps
        }
        """With the tables of first-order weights beside them."""

    def saw(self, ids: Jagged) -> None:
        """Values of a step's rows, which no other rank counts."""
        parts = dict(zip(ids.keys, ids.values.split(list(ids.per_key)), strict=True))
        for of in self.maps:
            of.saw([parts[feature] for feature in of.table.features])

    def due(self, step: int) -> bool:
        """Whether rows change hands behind `step`, counted from 0."""
        return any((step + 1) % of.how.every == 0 for of in self.maps)

    def stepped(self, step: int) -> None:
        """A step has updated the tables; a collective where it is `due`."""
        for of in self.maps:
            if (step + 1) % of.how.every == 0:
                taken = of.ranked()
                for table in self.renewed[of.table.name] if len(taken) else ():
                    self.renew(table, taken)
                self.ids.settle()

    def chunks(self) -> Iterator[Chunk]:
        """Maps, scores and what was seen since the last ranking; a collective, of which rank 0 writes."""
        for of in self.maps:
            of.gather()
            if dist.get_rank():
                of.forget()
            else:
                yield from of.chunks()

    def restore(self, read: ReadChunk) -> None:
        """All of `chunks`; what was seen is rank 0's now."""
        for of in self.maps:
            of.restore(read)
        self.ids.settle()


class _Map:
    """Of one table."""

    def __init__(self, table: Table, ids: ManagedIds, device: torch.device):
        assert table.managed is not None, "asked of managed tables"
        self.table, self.how, self.device = table, table.managed, device
        self.keys = ids.keys_of(table.name)
        self.scores = torch.zeros(table.rows, dtype=torch.float64)
        self.pending: list[Tensor] = []
        self.seen = torch.zeros(1, dtype=torch.int64, device=device)
        """int64 [S], rising; 0, of no value, is always there."""
        self.counts = torch.zeros(1, dtype=torch.int64, device=device)

    def saw(self, parts: list[Tensor]) -> None:
        self.pending.append(torch.cat(parts))
        if len(self.pending) >= COMPACTED_AFTER:
            self._compact()

    def _compact(self) -> None:
        ones = [torch.ones_like(part) for part in self.pending]
        self.seen, self.counts = _counted([self.seen, *self.pending], [self.counts, *ones])
        self.pending.clear()

    def gather(self) -> None:
        """What all ranks have seen becomes rank 0's; a collective."""
        self._compact()
        size = torch.tensor([len(self.seen)], device=self.device)
        sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        most = max(int(one) for one in sizes)
        mine = torch.zeros(2, most, dtype=torch.int64, device=self.device)
        mine[0, : len(self.seen)], mine[1, : len(self.seen)] = self.seen, self.counts
        everyones = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(everyones, mine)
        self.seen, self.counts = _counted([one[0] for one in everyones], [one[1] for one in everyones])

    def forget(self) -> None:
        self.seen, self.counts = self.seen.new_zeros(1), self.counts.new_zeros(1)

    def ranked(self) -> Tensor:
        """Rank all values anew; the rows that were taken from one for another, int64 in rising order. A collective."""
        self.gather()
        keys, scores = self.keys.cpu().numpy(), self.scores.numpy()
        taken = ranked(keys, scores, self.seen.cpu().numpy(), self.counts.cpu().numpy(), self.how)
        self.keys.copy_(torch.from_numpy(keys))
        self.forget()
        return torch.from_numpy(taken)

    def chunks(self) -> Iterator[Chunk]:
        yield whole(weight_name(f"tables.managed.{ManagedIds.buffer(self.table.name)}"), self.keys)
        yield whole(self._state("scores"), self.scores)
        yield whole(self._state("values"), torch.tensor([len(self.seen)]))
        yield whole(self._state("seen"), self.seen)
        yield whole(self._state("counts"), self.counts)

    def restore(self, read: ReadChunk) -> None:
        name = weight_name(f"tables.managed.{ManagedIds.buffer(self.table.name)}")
        self.keys.copy_(read(whole(name, self.keys)))
        self.scores.copy_(read(whole(self._state("scores"), self.scores)))
        values = torch.empty(int(read(whole(self._state("values"), torch.empty(1)))), dtype=torch.int64)
        self.seen = read(whole(self._state("seen"), values)).to(self.device)
        self.counts = read(whole(self._state("counts"), values)).to(self.device)
        if dist.get_rank():
            self.forget()

    def _state(self, slot: str) -> str:
        return state_name(f"tables.managed.{self.table.name}", slot)


def ranked(
    keys_R: NDArray[np.int64],
    scores_R: NDArray[np.float64],
    seen_S: NDArray[np.int64],
    counts_S: NDArray[np.int64],
    how: Managed,
) -> NDArray[np.int64]:
    """Give rows of a map to the values that count most, in place; those that had another value before, rising.

    `seen_S`: rising. Of equal scores who has a row keeps it, and of newcomers the smaller value comes first.
    """
    scores_R *= how.decay
    order_R = np.argsort(keys_R, kind="stable")
    at_S = np.minimum(np.searchsorted(keys_R, seen_S, sorter=order_R), len(keys_R) - 1)
    rows_S = order_R[at_S]
    known_S = (keys_R[rows_S] == seen_S) & (seen_S != 0)
    scores_R[rows_S[known_S]] += counts_S[known_S]
    new = (~known_S) & (seen_S != 0) & (counts_S >= how.least)
    newcomers, seen = seen_S[new], counts_S[new].astype(np.float64)
    best = np.lexsort((newcomers, -seen))
    newcomers, seen = newcomers[best], seen[best]
    used = 1 + int(np.count_nonzero(keys_R[1:]))
    free = min(len(keys_R) - used, len(newcomers))
    keys_R[used : used + free], scores_R[used : used + free] = newcomers[:free], seen[:free]
    newcomers, seen = newcomers[free:], seen[free:]
    if not len(newcomers):
        return np.empty(0, np.int64)
    # All rows are taken: the lowest scores, of equal ones the last rows, against the best newcomers.
    worst = 1 + np.lexsort((-np.arange(1, len(keys_R)), scores_R[1:]))[: len(newcomers)]
    beaten = int(np.count_nonzero(seen[: len(worst)] > scores_R[worst]))
    rows = worst[:beaten]
    keys_R[rows], scores_R[rows] = newcomers[:beaten], seen[:beaten]
    return np.sort(rows)


def first_rows(table: Table, seed: int, rows: Tensor) -> Tensor:
    """The first weights of some rows, float32 [n, dim]; `rows`: int64, in rising order."""
    found = torch.empty(len(rows), table.dim)
    for block in torch.unique_consecutive(rows // BLOCK_ROWS).tolist():
        first = block * BLOCK_ROWS
        here = rows // BLOCK_ROWS == block
        found[here] = initial_rows(table, seed, first, min(first + BLOCK_ROWS, table.rows))[rows[here] - first]
    return found


def _counted(values: list[Tensor], counts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Equal values together, rising, and their counts."""
    found, at = torch.unique(torch.cat(values), return_inverse=True)
    return found, torch.zeros_like(found).index_add_(0, at, torch.cat(counts))
