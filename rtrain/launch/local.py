"""A run without Ray: in this process (`inline`), or as one of torchrun's ranks (`torchrun`)."""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from rtrain.errors import ClusterError
from rtrain.launch.bar import Bar
from rtrain.run import Run
from rtrain.training import rng
from rtrain.training.events import Callback
from rtrain.training.job import Outcome, run_job
from rtrain.training.preemption import Notice
from rtrain.training.world import join, leave


def train_inline(run: Run, driver: str = "", callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train in this process, as a world of one: breakpoints work, nothing is spawned. `driver`: as in `run_job`."""
    if "RANK" in os.environ:
        raise ClusterError("--launcher inline: RANK is set, so this is one of several ranks. Use --launcher torchrun")
    with rng.left_alone():
        return _train(run, driver, callbacks)


def train_under_torchrun(run: Run, driver: str = "", callbacks: Sequence[Callback] = ()) -> Outcome | None:
    """Train as the rank that torchrun made this process; the outcome on rank 0, none elsewhere.

    `driver`, on rank 0: as in `run_job`.
    """
    missing = [v for v in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if v not in os.environ]
    if missing:
        raise ClusterError(
            f"--launcher torchrun: {', '.join(missing)} not set. Start it as: "
            f"torchrun --nproc-per-node {run.cluster.workers} RECIPE train --launcher torchrun"
        )
    outcome = _train(run, driver, callbacks)
    return outcome if int(os.environ["RANK"]) == 0 else None


class Agent:
    """What torchrun keeps for the workers that it starts once more: the driver that they belong to.

    Its store outlives them, and is another one in each torchrun. One without such a store keeps nothing: there every
    start is a driver of its own.
    """

    KEY, WAIT_S = "rtrain/driver", 60

    def __init__(self) -> None:
        self.store: dist.TCPStore | None = None
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self.store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=self.WAIT_S))

    @property
    def driver(self) -> str:
        """Token with which an earlier start of these workers took the run; empty at the first."""
        if self.store is None or not self.store.check([self.KEY]):
            return ""
        return bytes(self.store.get(self.KEY)).decode()

    def keep(self, token: str) -> None:
        """For the next start."""
        if self.store is not None:
            self.store.set(self.KEY, token)


def _train(run: Run, driver: str, callbacks: Sequence[Callback]) -> Outcome:
    world = join(gpu=bool(run.cluster.gpus_per_worker), timeout_s=run.faults.collective_s)
    try:
        with Notice(run.faults.grace_s) as notice:
            return run_job(run, world, [*([Bar(run)] if world.leads else []), *callbacks], notice, driver)
    finally:
        leave()
