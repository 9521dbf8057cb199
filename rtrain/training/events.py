"""The events of the loop, and the callback that listens to them.

    fit_start(state)                       once an attempt, after a resume
    repeat until state.done:
        batch from the reader              [data]
        logits, loss                       [forward]
        gradients                          [backward]
        gradients_ready(state, gradients)  nothing is updated yet
        tables and dense part are updated  [optimizer]
        step_end(state, point)             point: a TrainPoint every log_every_steps, else none
        evaluated(state, values)           after the validation split was scored
        saving(state)                      before a checkpoint is written: what it must not be ahead of
        checkpointed(state)                after it was committed: then, or as late as the next save (see Saver);
                                           `state` is that of the checkpoint; who sets its `stop`, the same on all
                                           ranks, ends the run with this step (none is written for that)
    fit_end(state)                         when training is over (not on a failure)
    close()                                always, also on a failure

Callbacks run on every rank; what prints or writes does so on rank 0 only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rtrain.data.cursor import Cursor
from rtrain.errors import ConfigError


@dataclass(frozen=True)
class TrainPoint:
    """One point of the training curve, the same on every rank."""

    loss: float
    """Mean loss of the rows (or tokens) since the last point."""
    examples_per_s: float
    """Rows of batches a second; for a language model, sequences."""
    lr: float
    """Learning rate of the dense parameters."""
    grad_norm: float | None


@dataclass
class State:
    """Where a run is; saved in every checkpoint."""

    total_steps: int
    rows: int
    """Rows of the training split."""
    step: int = 0
    """Optimizer steps done."""
    cursor: Cursor = field(default_factory=Cursor)
    """Position after the last batch that was trained on."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics at the best step."""
    best_step: int | None = None
    latest: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the last evaluation."""
    latest_step: int | None = None
    stale: int = 0
    """Evaluations since the best one."""
    stop: str = ""
    """Why the run ends before `total_steps`; empty while it does not."""
    window_loss: float = 0.0
    """Loss of the rows since the last point of the curve, summed over ranks, at the last checkpoint."""
    window_units: float = 0
    """What their mean is over: rows, or tokens."""
    attempt: int = 1
    elapsed_s: float = 0.0
    """Seconds in the loop, over all attempts that are part of this history."""

    @property
    def done(self) -> bool:
        """No further step will be taken."""
        return bool(self.stop) or self.step >= self.total_steps

    @property
    def rows_seen(self) -> int:
        """Training rows consumed since the first step."""
        return self.cursor.epoch * self.rows + self.cursor.sample

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self.rows_seen / self.rows

    def to_json(self) -> dict[str, Any]:
        """What a resume needs."""
        return {
            "step": self.step,
            "cursor": self.cursor.to_dict(),
            "best": self.best,
            "best_step": self.best_step,
            "latest": self.latest,
            "latest_step": self.latest_step,
            "stale": self.stale,
            "stop": self.stop,
            "window_loss": self.window_loss,
            "window_units": self.window_units,
            "elapsed_s": self.elapsed_s,
        }

    def load(self, stored: Mapping[str, Any]) -> None:
        """Take over what `to_json` gave."""
        self.step, self.cursor = stored["step"], Cursor.from_dict(stored["cursor"])
        self.best, self.best_step = dict(stored["best"]), stored["best_step"]
        self.latest, self.latest_step = dict(stored.get("latest", {})), stored.get("latest_step")
        self.stale, self.elapsed_s = stored["stale"], stored["elapsed_s"]
        self.stop = stored["stop"]
        self.window_loss, self.window_units = stored["window_loss"], stored["window_units"]


Gradients = Callable[[], Iterator[tuple[str, Tensor]]]
"""Logical name and gradient of each of this rank's dense weights (of its tensor share), averaged over data ranks,
before clipping; a collective over data ranks, to be asked by all of them or by none."""


class Callback:
    """Listens to the loop; override what you need."""

    def fit_start(self, state: State) -> None:
        """Training begins, or goes on from a checkpoint."""

    def gradients_ready(self, state: State, gradients: Gradients) -> None:
        """The gradients of a step are there, nothing is updated yet; `state.step` counts the steps before it."""

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """An optimizer step is done."""

    def evaluated(self, state: State, values: Mapping[str, float]) -> None:
        """The validation split was scored."""

    def saving(self, state: State) -> None:
        """A checkpoint is about to be written; make durable what a resume from it will not repeat."""

    def checkpointed(self, state: State) -> None:
        """The checkpoint of `state.step`, which may be some steps back, is committed."""

    def state(self) -> dict[str, Any]:
        """What the callback is to know again after a resume, as JSON; rank 0's is saved with each checkpoint."""
        return {}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """What `state` gave at the checkpoint, on every rank, before `fit_start`; empty where there was nothing."""

    def fit_end(self, state: State) -> None:
        """Training is over."""

    def close(self) -> None:
        """The attempt ends, whatever the reason."""


class Together(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = tuple(callbacks)
        names = [type(callback).__name__ for callback in self.callbacks]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"callbacks: two are of class {name}, by which their state is kept. Give each its own"
                )

    def fit_start(self, state: State) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.fit_start(state)

    def gradients_ready(self, state: State, gradients: Gradients) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.gradients_ready(state, gradients)

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.step_end(state, point)

    def evaluated(self, state: State, values: Mapping[str, float]) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.evaluated(state, values)

    def saving(self, state: State) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.saving(state)

    def checkpointed(self, state: State) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.checkpointed(state)

    def state(self) -> dict[str, Any]:
        """By the callbacks' class names, of those that have something to keep."""
        return {type(callback).__name__: kept for callback in self.callbacks if (kept := callback.state())}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """To each its own."""
        for callback in self.callbacks:
            callback.restore(stored.get(type(callback).__name__, {}))

    def fit_end(self, state: State) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.fit_end(state)

    def close(self) -> None:
        """Of each."""
        for callback in self.callbacks:
            callback.close()
