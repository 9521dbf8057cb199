"""A failure that is brought about on purpose, once, at one step of one rank: what `rtrain chaos` asks a run for."""

import os
import signal
import time

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.run import Injection
from rtrain.storage import Folder
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.world import World

NOTE = "injected.json"
"""In the run's folder: what was brought about and when; where it is, nothing is brought about again."""
SLOW_STEPS, SLOW_S = 10, 0.3
DAMAGE = ("corrupt-checkpoint", "truncate-checkpoint")


class Injected(RuntimeError):
    """The exception that was asked for."""


class Inject(Callback):
    """Does what `Injection` says at the end of its step, on its rank."""

    def __init__(self, injection: Injection, folder: Folder, checkpoints: CheckpointFolders, world: World):
        self.injection, self.folder, self.checkpoints, self.world = injection, folder, checkpoints, world
        self.done = world.rank != injection.rank % world.size or folder.exists(NOTE)
        self.slow_until = 0

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """Now, or not yet, or not here."""
        if state.step < self.slow_until:
            time.sleep(SLOW_S)
        if self.done or state.step < self.injection.step:
            return
        kind = self.injection.kind
        committed = self.checkpoints.committed()
        if len(committed) < (2 if kind in DAMAGE else 1):
            return  # a damaged checkpoint needs an intact one before it, and a resume one at all
        self.done = True
        note = {"kind": kind, "step": state.step, "rank": self.world.rank, "at": time.time(), "newest": committed[-1]}
        self.folder.write_json(NOTE, note)
        if kind in DAMAGE:
            self._damage(committed[-1])
        if kind == "exception":
            raise Injected("an exception that was asked for (faults.inject)")
        if kind == "hang":
            while True:
                time.sleep(1)
        if kind == "slow-rank":
            self.slow_until = state.step + SLOW_STEPS
            return
        os.kill(os.getpid(), signal.SIGTERM if kind == "preempt" else signal.SIGKILL)

    def _damage(self, step: int) -> None:
        folder = self.checkpoints.of(step)
        name = next(n for n in sorted(folder.names()) if n.endswith(".safetensors"))
        content = bytearray(folder.read(name))
        if self.injection.kind == "truncate-checkpoint":
            del content[len(content) // 2 :]
        else:
            content[-1] ^= 1
        folder.write(name, bytes(content))
