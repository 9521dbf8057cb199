"""The one progress bar of a run: fed by the loop itself, or by the history that a remote rank 0 writes."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rtrain.checkpoint import fence
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training import history
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.progress import Progress
from rtrain.training.records import PLACEMENT


class Bar(Callback):
    """Draws the loop's events in this process."""

    def __init__(self, run: Run):
        self.run = run
        self.progress: Progress | None = None
        self.best: float | None = None

    def fit_start(self, state: State) -> None:
        """Open the bar."""
        self.draw({"kind": "start", "step": state.step, "total_steps": state.total_steps, "best": state.best})

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """Move on at each point of the curve."""
        if point is not None:
            self.draw({"kind": "train", "step": state.step, "loss": point.loss, "examples_per_s": point.examples_per_s})

    def evaluated(self, state: State, values: Mapping[str, float]) -> None:
        """Show the best so far."""
        self.draw({"kind": "valid", "step": state.step, **values})

    def fit_end(self, state: State) -> None:
        """Say why it ended early."""
        if state.stop:
            self.note(f"stopped at step {state.step}: {state.stop}")

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self.progress:
            self.progress.close()
            self.progress = None

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self.progress:
            self.progress.note(f"{self.run.name}: {text}")

    def draw(self, line: Mapping[str, Any]) -> None:
        """One line of history.jsonl."""
        if line["kind"] == "start":
            self.close()
            self.progress = Progress(line["total_steps"], description=self.run.name, initial=line["step"])
            self.best = line.get("best", {}).get(self.run.evaluation.monitor)
            if line["step"]:
                self.note(f"resumed from step {line['step']}")
        elif self.progress is None:
            return
        elif line["kind"] == "event":
            self.note(line["text"])
        elif line["kind"] == "valid":
            value = line[self.run.evaluation.monitor]
            if self.best is None or (value > self.best if self.run.monitored.higher_is_better else value < self.best):
                self.best = value
        elif line["kind"] == "train":
            best = "" if self.best is None else f"{self.run.evaluation.monitor} {self.best:.4f}"
            self.progress.update(line["step"], examples_per_s=line["examples_per_s"], loss=line["loss"], best=best)


TOLD_EVERY_S = 15.0
"""Seconds of waiting for the first step after which it is said, again and again, for what."""


class Watch:
    """Follows history.jsonl from the driver while the workers train; a context manager."""

    def __init__(self, run: Run, say: Callable[[str], None], *, every_s: float = 1.0):
        self.run, self.say, self.every_s = run, say, every_s
        self.folder = Folder(run.folder)
        self.bar = Bar(run)
        self.seen = {self._key(line) for line in history.read(self.folder)}
        self.placed = self._placement()
        self.beginnings = len(fence.beginnings(CheckpointFolders(run.folder)))
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True, name="rtrain-watch")

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=10)
        self.bar.close()

    def _follow(self) -> None:
        began = announced = time.monotonic()
        while not self.ended.wait(self.every_s):
            self._draw_new()
            if self.bar.progress is None and time.monotonic() - announced > TOLD_EVERY_S:
                announced = time.monotonic()
                self.say(f"no step yet after {announced - began:.0f} s: {self._waits_for()}")
        self._draw_new()

    def _waits_for(self) -> str:
        """What the workers are at before the first step."""
        with suppress(OSError, ValueError):
            beginnings = len(fence.beginnings(CheckpointFolders(self.run.folder)))
            if self.placed != self._placement():
                return "the model is laid out, and the first batch is read"
            if beginnings > self.beginnings:
                return "the workers have met; they make the tables, or read the checkpoint"
        return f"{self.run.cluster.workers} workers start and import torch, which takes longest where they share cores"

    def _placement(self) -> bytes:
        return self.folder.read(PLACEMENT) if self.folder.exists(PLACEMENT) else b""

    def _draw_new(self) -> None:
        try:
            lines = history.read(self.folder)
        except (OSError, ValueError):
            return  # storage hiccup: a picture may miss a beat, the run goes on
        for line in lines:
            if self._key(line) not in self.seen:
                self.seen.add(self._key(line))
                self.bar.draw(line)

    @staticmethod
    def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
        return (line["kind"], line["step"], line.get("elapsed_s"), line.get("at"), line.get("attempt"))
