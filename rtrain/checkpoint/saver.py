"""When a checkpoint is written: while training waits, or by a thread while it goes on.

    save()    copy this rank's state to the host      the only part that training waits for
              [thread] write, agree with all ranks, commit, prune
    settle()  wait for the thread; what went wrong in it is raised here

At most one is in flight: the next save waits for it. All that the thread says to other ranks goes over
a process group of its own (gloo, on the host), so it never meets training's collectives. Whether a
checkpoint is in flight is the same on every rank at every step: no rank has to ask another.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rtrain.checkpoint.fence import Attempt
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.writing import Collected, collect, write_collected
from rtrain.errors import one_line
from rtrain.parallel.chunks import Chunk

_writing = set[threading.Thread]()


def still_writing() -> bool:
    """Whether a checkpoint of this process is still in flight, in a group whose end would abort it."""
    return any(thread.is_alive() for thread in _writing)


class Saver:
    """Writes a run's checkpoints; one on each rank, all called alike. Made by a collective."""

    def __init__(self, folders: CheckpointFolders, attempt: Attempt | None, *, background: bool):
        self.folders, self.attempt, self.background = folders, attempt, background
        self.group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self.stalled_s = self.last_s = 0.0
        """Seconds that training has waited for checkpoints; and those of what was written `now`, as training ended."""
        self.problems: list[str] = []
        """What went wrong on rank 0 after a commit, for who keeps the run's history to take out."""
        self._memory: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        step: int,
        chunks: Iterable[Chunk],
        meta: Mapping[str, Any],
        *,
        committed: Callable[[], object],
        now: bool = False,
    ) -> None:
        """Write a checkpoint; a collective. None may be in flight: `settle` first.

        `committed` is called on rank 0 after the commit, in the thread (pruning); what it raises goes to
        `problems`, for the checkpoint is there, and the other ranks go on. `now`: training does
        not go on, so nothing is copied and this returns when it is committed.

        Raises:
            CheckpointError: on every rank, it could not be written.
            Fenced: on every rank, another attempt has taken the run over.
        """
        assert self._thread is None, "a checkpoint is in flight"
        began = time.perf_counter()
        waits = now or not self.background
        collected = collect(chunks, None if waits else self._memory)
        if waits:
            self._write(step, collected, meta, committed)
        else:
            work = threading.Thread(
                target=self._run, args=(step, collected, meta, committed), name="rtrain-save", daemon=True
            )
            self._thread = work
            _writing.add(work)
            work.start()
        if now:
            self.last_s += time.perf_counter() - began
        else:
            self.stalled_s += time.perf_counter() - began

    def _write(self, step: int, collected: Collected, meta: Mapping[str, Any], committed: Callable[[], object]) -> None:
        write_collected(self.folders, step, collected, meta, attempt=self.attempt, group=self.group)
        if dist.get_rank(self.group) == 0:
            try:
                committed()
            except Exception as error:
                self.problems.append(f"after the commit of step {step}: {one_line(error)}")

    def _run(self, *work: Any) -> None:
        try:
            self._write(*work)
        except BaseException as error:
            self._error = error

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is in flight, or `timeout_s` (a rank that failed must not wait for its peers for ever).

        What is still in flight then stays in flight: no other may be begun.

        Raises:
            CheckpointError: as `save`; every rank was told, so each one raises it here.
        """
        if self._thread is None:
            return
        began = time.perf_counter()
        self._thread.join(timeout_s)
        self.stalled_s += time.perf_counter() - began
        if self._thread.is_alive():
            return  # its peers may be gone: it ends with its group's time-out
        _writing.discard(self._thread)
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
