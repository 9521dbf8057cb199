"""What the fullest rank of a layout would hold, from pieces that were counted once."""

from rtrain.mesh import Mesh, Parallel
from rtrain.outlook.step import Stages, Stepper
from rtrain.parallel.placement import bytes_per_rank, total_bytes
from rtrain.rounding import ceil_div


def held_bytes(stepper: Stepper, parallel: Parallel, mesh: Mesh) -> int:
    """Weights, gradients, optimizer and activations, as `plan` counts them, and an even share of the tables.

    What lies between two pieces of a stage counts as kept; the batch itself is not counted. Of ZeRO-3 also the largest
    piece's weights, gathered, which `plan` leaves to DeepSpeed.

    Raises:
        NotCounted: as `flops.count`.
    """
    stages = stepper.stages(parallel, mesh)
    run = stepper.run
    dense = bytes_per_rank(parallel, run.sparse_optim, (), mesh, dense_parameters=stages.parameters)
    of_ranks = [total_bytes(row) + activation_bytes(parallel, mesh, stages, rank) for rank, row in enumerate(dense)]
    if parallel.dense == "zero" and parallel.zero_stage == 3 and mesh.data > 1:
        of_ranks = [n + 4 * max(c.parameters for c in stages.pieces(rank)) for rank, n in enumerate(of_ranks)]
    most = max(of_ranks)
    return most + ceil_div(sum(2 * table.bytes for table in stepper.blueprint.tables), mesh.world_size)


def activation_bytes(parallel: Parallel, mesh: Mesh, stages: Stages, rank: int) -> int:
    """On one pipeline rank, of all microbatches in flight, with the pipeline's buffers."""
    saved, again = stages.saved_bytes[rank], stages.again_bytes[rank]
    if mesh.pipeline == 1:
        return saved + again
    buffers = 2 * parallel.microbatches * stages.received_bytes[rank]
    return int(saved * in_flight(parallel, mesh.pipeline, rank)) + again + buffers


def in_flight(parallel: Parallel, ranks: int, rank: int) -> float:
    """Microbatches whose forward pass a rank keeps at a time, at most; halves where it has two stages.

    In closed form, since `rtrain.parallel.in_flight` walks through the schedule, too slow for thousands of layouts.
    """
    m = parallel.microbatches
    if parallel.schedule == "1f1b":
        return min(m, ranks - rank)
    if parallel.schedule == "interleaved_1f1b":
        return min(2 * m, ranks + 2 * (ranks - rank - 1) + 1) / 2
    return m
