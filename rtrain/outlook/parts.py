"""The parts of a step beside its kernels: pipeline, data ranks, optimizer, tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rtrain.mesh import ONE_STAGE_A_RANK, Parallel, PipelineSchedule
from rtrain.nn.tables import Table
from rtrain.optim import Adagrad, Adam, RowWiseAdagrad, SparseOptim
from rtrain.outlook import collectives
from rtrain.outlook.collectives import Group
from rtrain.outlook.kernels import Practice
from rtrain.outlook.profile import Profile
from rtrain.parallel.placement import REPLICATED, TablePlacement

ADAMW_BYTES = 36
"""That AdamW reads and writes of a weight a step, float32: weight, gradient and two moments read, three of them
written; the gradient read once for its norm, and set to zero."""
ID_BYTES = 8
REUSED = 1_000_000_000
"""Elements within which ZeRO-3 keeps a weight that is used again: DeepSpeed's `stage3_max_reuse_distance`."""
BESIDE = 0.2
"""Of a device, what a collective takes from computing beside it: NCCL's kernels hold up to 24 multiprocessors, of 132
(H100) or 108 (A100). A stated assumption."""


def bubble_s(schedule: PipelineSchedule, forward_s: Sequence[float], backward_s: Sequence[float]) -> float:
    """Seconds in which the slowest rank of a pipeline waits for the others.

    `forward_s`, `backward_s`: of each pipeline rank, for one microbatch through all its stages. Of p equal ranks with F
    and B: (p - 1)(F + B) of gpipe and 1f1b (Huang et al., arXiv:1811.06965; Narayanan et al., arXiv:1806.03377), half
    of it with two stages a rank (Narayanan et al., arXiv:2104.04473). Zero-bubble schedules put the half of backward
    that no other rank waits for into the holes (Qi et al., arXiv:2401.10241): (p - 1) F / 2 is left of
    interleaved_zero_bubble, and of zbv the way of the first microbatch down to the last rank, as much.
    """
    whole = [f + b for f, b in zip(forward_s, backward_s, strict=True)]
    slowest = max(range(len(whole)), key=whole.__getitem__)
    others = [n for n in range(len(whole)) if n != slowest]
    if schedule.endswith("zero_bubble"):
        return sum(forward_s[n] for n in others) / 2
    return sum(whole[n] for n in others) / (1 if schedule in ONE_STAGE_A_RANK else 2)


def bubble_fraction(schedule: PipelineSchedule, ranks: int, microbatches: int) -> float:
    """Of a step the part that equal ranks wait, backward taking twice as long as forward."""
    bubble = bubble_s(schedule, [1.0] * ranks, [2.0] * ranks)
    return bubble / (bubble + 3.0 * microbatches)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What data ranks have in common of the dense part."""

    parameters: int
    """Elements on the rank that has most, before ZeRO divides them."""
    pieces: int
    """That it has, each of which ZeRO-3 gathers apart."""
    forward_s: float
    """Of all microbatches."""
    backward_s: float


def data_s(parallel: Parallel, shared: Shared, data: Group, profile: Profile, practice: Practice) -> float:
    """Seconds that a step waits for the collectives of data ranks.

    DDP and ZeRO-0 sum gradients on every rank; ZeRO-1 and 2 sum them in shares, and gather the updated weights; ZeRO-3
    gathers weights for each forward and each backward pass (of recomputed pieces larger than `REUSED` once more), and
    sums gradients once a step in shares. rtrain hides, behind computing, what ZeRO-3 gathers, and gradients of one
    microbatch with DDP and ZeRO-3: all but the first piece's or the last's. What else there is, it waits for. What is
    hidden slows computing by a part, `BESIDE`.
    """
    if data.size == 1 or not shared.parameters:
        return 0.0
    gathered, reduced = (shared.parameters * each for each in (practice.gathered_bytes, practice.reduced_bytes))
    stage = parallel.zero_stage if parallel.dense == "zero" else 0
    whole_backward = parallel.microbatches == 1 and parallel.pipeline == 1
    hides_sum = practice.hides == "all" or (whole_backward and (parallel.dense == "ddp" or stage == 3))
    last_backward_s = shared.backward_s / parallel.microbatches
    if stage == 0:
        summed = collectives.all_reduce_s(reduced, data, profile)
    else:
        summed = collectives.reduce_scatter_s(reduced, data, profile)
    waits = _left(summed, last_backward_s, shared.pieces) if hides_sum else summed
    if stage in (1, 2):
        again = collectives.all_gather_s(4.0 * shared.parameters, data, profile)
        waits += _left(again, shared.forward_s / parallel.microbatches, shared.pieces) if hides_sum else again
    if stage == 3:
        one = collectives.all_gather_s(gathered / shared.pieces, data, profile) * shared.pieces
        large = shared.parameters > REUSED * shared.pieces
        times = 3 if parallel.recompute == "pieces" and large else 2
        waits += _left(times * parallel.microbatches * one, shared.forward_s + shared.backward_s, shared.pieces)
    return waits


def _left(seconds: float, beside_s: float, pieces: int) -> float:
    """Of a collective piece by piece what is not hidden: one piece's at least; and what it takes from computing."""
    left = max(seconds / pieces, seconds - beside_s)
    return left + BESIDE * (seconds - left)


def optimizer_s(parallel: Parallel, parameters: int, data: int, profile: Profile) -> float:
    """Seconds of AdamW, which its bytes bound, over this rank's share of the weights."""
    share = parameters / (data if parallel.dense == "zero" and parallel.zero_stage else 1)
    return ADAMW_BYTES * share / (profile.memory_bandwidth * profile.memory_efficiency)


def tables_s(
    tables: Sequence[Table], placed: Sequence[TablePlacement], optim: SparseOptim, *,
    global_batch: int, world: Group, profile: Profile, wire_bytes: int,
) -> float:  # fmt: skip
    """Seconds of lookup, exchange and update of the embedding tables a step, on the rank where they take longest.

    `placed`: where each lies; nothing: all of them evenly dealt, whole or by columns, a stated assumption. Of tables by
    rows ids are taken to be spread evenly, and of each row a partial sum travels from every rank.
    """
    moved: dict[int, float] = defaultdict(float)
    vectors: dict[int, float] = defaultdict(float)
    evenly = evenly_sent = replicated = 0.0
    layouts = {table.table: table for table in placed}
    ids = 0.0
    for table in tables:
        lengths = table.mean_lengths or (1.0,) * len(table.features)
        looked_up = global_batch * sum(lengths)
        pooled = looked_up if table.sequences else global_batch * len(table.features)
        ids += looked_up * ID_BYTES
        per_row = table.dim * (3 * table.item_bytes + 8.0) + _state_bytes(optim, table.dim)
        layout = layouts.get(table.name)
        if layout is None:
            evenly += looked_up * per_row / world.size
            evenly_sent += pooled * table.dim * wire_bytes / world.size
            continue
        if layout.sharding == REPLICATED:
            replicated += 4.0 * table.rows * table.dim
            evenly += looked_up * per_row / world.size
            continue
        for shard in layout.shards:
            rows, columns = shard.sizes[0] / table.rows, shard.sizes[1] / table.dim
            moved[shard.rank] += looked_up * rows * columns * per_row
            vectors[shard.rank] += (pooled if rows < 1 and not table.sequences else pooled * rows) * (
                columns * table.dim * wire_bytes
            )
    kernels = (evenly + max(moved.values(), default=0.0)) / (profile.memory_bandwidth * profile.memory_efficiency)
    if isinstance(optim, Adam):  # every row, read or not
        held = sum(4.0 * table.rows * table.dim for table in tables) / world.size
        kernels += 7 * held / (profile.memory_bandwidth * profile.memory_efficiency)
    # The rank that sends most is who all wait for: vectors there, their gradients back.
    sent = evenly_sent + max(vectors.values(), default=0.0)
    there_and_back = 2 * collectives.all_to_all_s(sent, world, profile)
    asked = collectives.all_to_all_s(ids / world.size, world, profile)
    summed = collectives.all_reduce_s(replicated, world, profile) if replicated else 0.0
    return kernels + there_and_back + asked + summed


def _state_bytes(optim: SparseOptim, dim: int) -> float:
    """Of the optimizer's state, read and written for a row that is updated."""
    if isinstance(optim, RowWiseAdagrad):
        return 8.0
    return 8.0 * dim if isinstance(optim, Adagrad) else 0.0
