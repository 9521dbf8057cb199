"""What a callback is told between gradients and update, and that it knows after a resume what it knew before."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rtrain
from rtrain.duration import Duration
from rtrain.errors import ConfigError
from rtrain.run import Run
from rtrain.training.events import Callback, Gradients, State, TrainPoint
from tests.unit.training.jobs import At, job, train


class Norms(Callback):
    """The norm of the gradients of each step, as the callback adds it up and as the loop tells it."""

    def __init__(self) -> None:
        self.own, self.told = list[float](), list[float]()

    def gradients_ready(self, state: State, gradients: Gradients) -> None:
        assert state.step == len(self.own)
        named = dict(gradients())
        assert all(name.startswith("tower.") for name in named) and len(named) == 10
        self.own.append(sum(float(g.double().square().sum()) for g in named.values()) ** 0.5)

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        assert point is not None and point.grad_norm is not None
        self.told.append(point.grad_norm)


@pytest.mark.parametrize("changes", [{"parallel.dense": "ddp"}, *({"parallel.zero_stage": s} for s in (0, 1, 2, 3))])
def test_gradients_are_whole_before_the_update(tiny: Run, changes: dict[str, Any]) -> None:
    norms = Norms()
    changes = {"parallel.dense": "zero", "duration.steps": 3, "optim.clip_norm": 1e-3} | changes
    job(rtrain.override(tiny, changes), norms)
    assert len(norms.own) == 3 and norms.own == pytest.approx(norms.told, rel=1e-5)


class Average(Callback):
    """A moving average of the loss."""

    def __init__(self) -> None:
        self.value, self.seen = 0.0, list[int]()

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        assert point is not None
        self.value = 0.9 * self.value + 0.1 * point.loss
        self.seen.append(state.step)

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, stored: Mapping[str, Any]) -> None:
        self.value = stored["value"]


def test_a_callback_knows_after_a_resume_what_it_knew_before(tiny: Run) -> None:
    calm, stopped = (rtrain.override(tiny, {"name": name, "duration.epochs": 1}) for name in ("calm", "stopped"))
    straight = Average()
    job(calm, straight)
    with pytest.raises(Exception, match="RuntimeError"):
        job(stopped, Average(), At(9))  # the checkpoint is that of step 7
    again = Average()
    job(stopped, again)
    assert again.seen == [8, 9, 10] and again.value == straight.value


class Steps(Callback):
    """Counts the steps over all attempts."""

    def __init__(self) -> None:
        self.steps = 0

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, stored: Mapping[str, Any]) -> None:
        self.steps = stored.get("steps", 0)


def test_a_callback_of_ones_own_hears_of_a_run_and_goes_on_with_it(tiny: Run) -> None:
    first, second = Steps(), Steps()
    train(replace(tiny, duration=Duration(steps=7)), callbacks=[first])
    train(replace(tiny, duration=Duration(steps=10)), callbacks=[second])
    assert (first.steps, second.steps) == (7, 10)


def test_two_callbacks_of_one_class_are_refused_before_anything_starts(tiny: Run) -> None:
    with pytest.raises(ConfigError, match="two are of class Steps"):
        train(tiny, callbacks=[Steps(), Steps()])
    assert not Path(tiny.folder).exists()
