"""history.jsonl: the curves and events of a run in its own folder, whatever tracker is chosen."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from rtrain.storage import Folder
from rtrain.training.events import Callback, State, TrainPoint

NAME = "history.jsonl"


class History(Callback):
    """Keeps the lines in memory and rewrites the file whole, at most every `every_s` and when it matters.

    A file of lines cannot be appended to on object storage; a curve of some thousand points is
    small. Lines beyond the step that a resume starts from are dropped, so no step is there twice.
    """

    def __init__(
        self, folder: Folder, *, resume_step: int, every_s: float = 2.0, overtaken: Callable[[], bool] = lambda: False
    ):
        self.folder, self.every_s = folder, every_s
        self.overtaken = overtaken
        """Whether the file belongs to a newer attempt by now; it is then left alone."""
        kept = [line for line in read(folder) if line["kind"] in ("event", "start") or line["step"] <= resume_step]
        self.lines = kept
        self.written = 0.0

    def event(self, step: int, text: str) -> None:
        """Note something that happened to the run."""
        self._add({"kind": "event", "step": step, "text": text, "at": time.time()}, now=True)

    def fit_start(self, state: State) -> None:
        """The attempt begins; readers learn how long the run is."""
        line = {
            "kind": "start",
            "step": state.step,
            "total_steps": state.total_steps,
            "attempt": state.attempt,
            "best": dict(state.best),
            "at": time.time(),
        }
        if state.attempt > 1:
            self.event(state.step, f"attempt {state.attempt}: goes on from step {state.step}")
        self._add(line, now=True)

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """A point of the training curve."""
        if point is not None:
            self._add(
                {
                    "kind": "train",
                    "step": state.step,
                    "epoch": round(state.epoch, 4),
                    "loss": point.loss,
                    "examples_per_s": point.examples_per_s,
                    "lr": point.lr,
                    "grad_norm": point.grad_norm,
                    "elapsed_s": round(state.elapsed_s, 3),
                }
            )

    def evaluated(self, state: State, values: Mapping[str, float]) -> None:
        """A point of the validation curves."""
        self._add({"kind": "valid", "step": state.step, **values}, now=True)

    def saving(self, state: State) -> None:
        """A resume from this checkpoint adds no line of an earlier step, so they must be there."""
        self._write()

    def close(self) -> None:
        """Write what is left."""
        self._write()

    def _add(self, line: dict[str, Any], *, now: bool = False) -> None:
        self.lines.append(line)
        if now or time.monotonic() - self.written >= self.every_s:
            self._write()

    def _write(self) -> None:
        if self.overtaken():
            return
        self.folder.write(NAME, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        self.written = time.monotonic()


def read(folder: Folder) -> list[dict[str, Any]]:
    """The lines of a run so far; none when there is no file yet."""
    if not folder.exists(NAME):
        return []
    return [json.loads(line) for line in folder.read(NAME).decode().splitlines() if line]
