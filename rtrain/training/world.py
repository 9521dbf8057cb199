"""Who this process is among its peers, and the process group that joins them."""

import os
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed import constants, distributed_c10d

from rtrain import notices
from rtrain.checkpoint.saver import still_writing
from rtrain.parallel.precision import multiplied_as
from rtrain.training import heap

_JOINED = ExitStack()
"""What lasts until this process leaves its group."""


@dataclass(frozen=True)
class World:
    """One rank's place in the job."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    node: str

    @property
    def leads(self) -> bool:
        """Rank 0: the one that prints and writes."""
        return self.rank == 0

    def memory_bytes(self) -> int:
        """Memory of the device, or this rank's share of the host's."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return int(psutil.virtual_memory().total) // self.local_size


def join(*, gpu: bool, timeout_s: float) -> World:
    """Join the process group that the launcher's environment describes (torchrun's and Ray's names).

    Without such an environment this is a world of one. A group that exists already is used. Every group
    that is made from now on has the same time-out: the axes', the saver's, TorchRec's and DeepSpeed's.
    """
    _JOINED.enter_context(notices.aside())
    if "RANK" not in os.environ:  # a notebook goes on after it: torch's own hook, once a group, says "[rank0]" for good
        _JOINED.callback(setattr, sys, "excepthook", sys.excepthook)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler tells, from C++, when it starts and stops
    heap.keep_freed()
    _default_timeout(timedelta(seconds=timeout_s))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    # Ray gives each worker its own visible device; torchrun lets all of a node's ranks see all of them.
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.init()  # it lazily would at the first tensor; until then it counts as not in use
        torch.cuda.set_device(device)
        _JOINED.enter_context(multiplied_as("float32"))  # also what is no training step, whatever the process had
    if not dist.is_initialized():
        store = dist.HashStore() if "RANK" not in os.environ else None
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            rank=rank,
            world_size=size,
            store=store,
            timeout=timedelta(seconds=timeout_s),
        )
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device=device,
        node=socket.gethostname(),
    )


def leave() -> None:
    """Leave the process group, if there is one."""
    _default_timeout(constants.default_pg_timeout)
    # A thread that still writes a checkpoint of a failed attempt uses its group: pulled from under it, gloo aborts.
    if dist.is_initialized() and not still_writing():
        dist.destroy_process_group()
    _JOINED.close()


def _default_timeout(timeout: timedelta) -> None:
    """Of groups that are made without one. torch takes 30 minutes (10 for NCCL) then, whatever the world's has."""
    distributed_c10d.default_pg_timeout = timeout
    distributed_c10d.default_pg_nccl_timeout = timeout
