"""What training gives step by step, without a loop's evaluations and checkpoints: for comparing layouts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from rtrain.checkpoint.format import Stored
from rtrain.data.protocol import AnyBatch
from rtrain.mesh import lay_out
from rtrain.run import Run
from rtrain.training.agreement import open_data
from rtrain.training.breakdown import Stopwatch
from rtrain.training.ready import Copies, Given, arrived
from rtrain.training.replica import Replica
from rtrain.training.world import join


@dataclass(frozen=True)
class Trace:
    """Of the steps that were trained."""

    losses: list[float]
    """Mean over each global batch."""
    grad_norms: list[float]
    """Empty where clipping is off and nothing computes them."""
    bytes_per_rank: int
    """Weights, gradients and optimizer state of the rank that has most, by the layout's arithmetic."""


def trace(
    run: Run,
    *,
    steps: int,
    stored: Stored | None = None,
    before_step: Callable[[int, Replica], None] = lambda step, replica: None,
) -> Trace:
    """Train `run` in the present world up to step `steps`, from its first step or from a checkpoint on.

    A collective; the answer is the same on every rank.
    """
    world = join(gpu=bool(run.cluster.gpus_per_worker), timeout_s=run.faults.hang_s)
    mesh = lay_out(run.parallel, world.size)
    replica = Replica(run, mesh, world, stored=stored, training=True)
    share = mesh.share(world.rank, run.blueprint.dealt)
    data = open_data(run)
    reader = data.reader(
        "train",
        global_batch=run.global_batch,
        seed=run.seed,
        rank=share.index,
        world_size=share.count,
        ready=Copies(world.device),
    )
    total_steps = run.total_steps(data.rows("train"))
    watch, batches = Stopwatch(world.device, sample_steps=0), iter(reader)
    replica.restore_rng()
    losses, norms = list[float](), list[float]()

    def there(given: Given) -> AnyBatch:
        return arrived(given, world.device)[1]

    for _ in range(first := stored.step if stored else 0):
        next(batches)
    upcoming: AnyBatch | None = there(next(batches)[0]) if first < steps else None
    for step in range(first, steps):
        batch, upcoming = upcoming, there(next(batches)[0]) if step + 1 < steps else None
        assert batch is not None, "read a step before"
        before_step(step, replica)
        loss = replica.train_step(batch, step=step, total_steps=total_steps, watch=watch, upcoming=upcoming).double()
        dist.all_reduce(loss)
        losses.append(float(loss) / replica.units)
        if replica.grad_norm is not None:
            norms.append(replica.grad_norm)
    reader.close()
    most = max(sum(v for k, v in row.items() if k != "rank") for row in replica.bytes_per_rank())
    return Trace(losses, norms, most)
