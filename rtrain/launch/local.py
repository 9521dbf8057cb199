"""A run without Ray: in this process (`inline`), or as one of torchrun's ranks (`torchrun`)."""

import os

from rtrain.errors import ClusterError
from rtrain.launch.bar import Bar
from rtrain.run import Run
from rtrain.training.job import Outcome, run_job
from rtrain.training.preemption import Notice
from rtrain.training.world import join, leave


def train_inline(run: Run, driver: str = "") -> Outcome:
    """Train in this process, as a world of one: breakpoints work, nothing is spawned. `driver`: as in `run_job`."""
    if "RANK" in os.environ:
        raise ClusterError("--launcher inline: RANK is set, so this is one of several ranks. Use --launcher torchrun")
    return _train(run, driver)


def train_under_torchrun(run: Run, driver: str = "") -> Outcome | None:
    """Train as the rank that torchrun made this process; the outcome on rank 0, none elsewhere.

    `driver`, on rank 0: as in `run_job`.
    """
    missing = [v for v in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if v not in os.environ]
    if missing:
        raise ClusterError(
            f"--launcher torchrun: {', '.join(missing)} not set. Start it as: "
            f"torchrun --nproc-per-node {run.cluster.workers} RECIPE train --launcher torchrun"
        )
    outcome = _train(run, driver)
    return outcome if int(os.environ["RANK"]) == 0 else None


def _train(run: Run, driver: str) -> Outcome:
    world = join(gpu=bool(run.cluster.gpus_per_worker), timeout_s=run.faults.collective_s)
    try:
        with Notice(run.faults.grace_s) as notice:
            return run_job(run, world, [Bar(run)] if world.leads else [], notice, driver)
    finally:
        leave()
