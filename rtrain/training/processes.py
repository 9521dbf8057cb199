"""A world of gloo processes on this machine, with a deadline: nothing of it outlives the call."""

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessRaisedException

from rtrain.errors import RunFailed
from rtrain.scratch import Scratch
from rtrain.training.world import join, leave

PRELOADED = ("rtrain.parallel.zero", "rtrain.parallel.embeddings", "rtrain.training.replica")
"""Imported once, by the process that all ranks of all worlds are forked from: some 6 s of CPU less for each rank.
DeepSpeed and TorchRec come with them, by way of their settings."""
GRACE_S = 5.0
"""Seconds for the other ranks to end after one has failed, and for a stuck one to write its stack."""


def in_world(size: int, work: Callable[..., Any], *arguments: Any, deadline_s: float) -> list[Any]:
    """What `work(*arguments)` gives on each rank of a spawned world, as JSON; floats come back bit for bit.

    Raises:
        RunFailed: the world was not done after `deadline_s`; with the stack of each rank that still ran.
        ProcessRaisedException: a rank raised; the error that came first.
        torch.multiprocessing.ProcessExitedException: a rank died, or ended itself.
    """
    with Scratch("world") as folder:
        store = _meeting_place()
        multiprocessing.set_forkserver_preload(list(PRELOADED))
        context = torch.multiprocessing.start_processes(
            _rank,
            (size, store.port, str(folder), deadline_s, dict(os.environ), work, arguments),
            nprocs=size,
            join=False,
            daemon=True,
            start_method="forkserver",
        )
        assert context is not None
        ends = time.monotonic() + deadline_s
        try:
            while not context.join(timeout=max(0.0, min(1.0, ends - time.monotonic())), grace_period=GRACE_S):
                if time.monotonic() >= ends:
                    raise RunFailed(
                        f"a world of {size} processes was not done after {deadline_s:g} s. Where its ranks were:\n"
                        + _stacks(context.processes, folder)
                    )
        except ProcessRaisedException as error:
            first = min(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns, default=None)
            if first is None:
                raise
            raise ProcessRaisedException(first.read_text(), error.error_index, error.error_pid) from None
        finally:
            _end(context.processes)
            del store
            for file in context.error_files:  # torch leaves those of ranks that raised
                Path(file).unlink(missing_ok=True)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _meeting_place() -> dist.TCPStore:
    """Where the ranks find each other, held by this process: a free port that a rank is told may be taken by then."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        return dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )


def _rank(
    rank: int,
    size: int,
    port: int,
    folder: str,
    deadline_s: float,
    environment: dict[str, str],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    with open(_stack_file(Path(folder), rank), "w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        torch.set_num_threads(1)
        os.environ.clear()
        os.environ.update(environment)  # the process that this one was forked from may have had another
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(size),
            TORCHELASTIC_USE_AGENT_STORE="True",  # as torchrun's ranks: rank 0 joins, and does not listen itself
            TORCHELASTIC_RESTART_COUNT="0",
        )
        # Beyond the deadline, which says who is stuck: a collective that gave up first would say only that one is.
        join(gpu=False, timeout_s=deadline_s + 60)
        try:
            found = work(*arguments)
            (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
        except Exception:
            # Before the connections close: what its peers then raise of that is not the cause.
            (Path(folder) / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
            raise
        leave()


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"stack-{rank}.txt"


def _stacks(processes: Sequence[BaseProcess], folder: Path) -> str:
    """What each process that still runs is at; its own threads write it, so one stopped from outside stays silent."""
    alive = {rank: process for rank, process in enumerate(processes) if process.is_alive()}
    for rank, process in alive.items():
        if _stack_file(folder, rank).exists() and process.pid:  # else it is still starting, and the signal would end it
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
    ends = time.monotonic() + GRACE_S
    answers: dict[int, str] = {}
    while len(answers) < len(alive) and time.monotonic() < ends:
        time.sleep(0.1)
        for rank in alive:
            path = _stack_file(folder, rank)
            if path.exists() and (text := path.read_text()):
                answers[rank] = text
    return "\n".join(f"rank {rank}: {answers.get(rank, 'it did not answer').strip()}" for rank in alive)


def _end(processes: Sequence[BaseProcess]) -> None:
    """End the processes that still run, and all that they started."""
    running: list[psutil.Process] = []
    for process in processes:
        with suppress(psutil.Error):
            if process.pid and process.is_alive():
                this = psutil.Process(process.pid)
                running += [*this.children(recursive=True), this]
    for one in running:
        with suppress(psutil.Error):
            one.kill()
    for process in processes:
        process.join(GRACE_S)
