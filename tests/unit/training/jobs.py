"""Whole jobs in this process, and what they leave in their folder."""

import json
from pathlib import Path
from typing import Any

import rtrain
from rtrain.launch.local import train_inline
from rtrain.run import Run
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.job import Outcome, run_job
from rtrain.training.world import join, leave


def train(run: Run, **options: Any) -> dict[str, Any]:
    """The result of `rtrain.train`, without Ray."""
    result = rtrain.train(run, **{"launcher": "inline", "quiet": True} | options)
    assert result is not None
    return dict(result.values)


def lines(run: Run, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in the run's history."""
    text = (Path(run.folder) / "history.jsonl").read_text()
    return [x for x in map(json.loads, text.splitlines()) if x["kind"] == kind]


def losses(run: Run) -> dict[int, float]:
    """Step -> loss of the training curve; a step that is there twice would be a mistake."""
    points = lines(run, "train")
    assert len({x["step"] for x in points}) == len(points)
    return {x["step"]: x["loss"] for x in points}


class At(Callback):
    """Does something at the end of one step; raises what it returns."""

    def __init__(self, step: int, work: Any = RuntimeError):
        self.step, self.work = step, work

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        if state.step == self.step:
            error = self.work()
            if error is not None:
                raise error


def job(run: Run, *callbacks: Callback) -> Outcome:
    """The worker's part of a run alone: no export, no report."""
    if not callbacks:
        return train_inline(run)
    world = join(gpu=False, timeout_s=60)
    try:
        return run_job(run, world, callbacks)
    finally:
        leave()
