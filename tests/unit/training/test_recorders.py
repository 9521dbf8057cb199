"""What is told of a run: to trackers while the run is this attempt's, by the bar with what earlier starts knew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rtrain
from recipes.dlrm_movielens import debug
from rtrain.launch.bar import Bar
from rtrain.training.events import State, TrainPoint
from rtrain.training.records import TrackerCalls


class Kept:
    def __init__(self) -> None:
        self.steps = list[int]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)

    def flush(self) -> None: ...
    def close(self) -> None: ...
    def finish(self, summary: Mapping[str, float]) -> None: ...


def test_an_overtaken_attempt_tells_its_trackers_nothing_more() -> None:
    kept, lost = Kept(), list[bool]()
    calls = TrackerCalls([kept], overtaken=lambda: bool(lost), every_s=0.0)
    point = TrainPoint(loss=1.0, examples_per_s=1.0, lr=0.1, grad_norm=None)
    for step in (1, 2, 3):
        calls.step_end(State(total_steps=9, rows=1, step=step), point)
        calls.evaluated(State(total_steps=9, rows=1, step=step), {"auc": 0.5})
        if step == 2:
            lost.append(True)
    assert kept.steps == [1, 1, 2, 2]


@pytest.mark.parametrize(("best", "shown"), [({}, "0.6000"), ({"auc": 0.7344}, "0.7344"), ({"mae": 0.1}, "0.6000")])
def test_a_resumed_bar_shows_the_best_of_all_starts(
    best: dict[str, float], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar(rtrain.override(debug(), {"storage": str(tmp_path)}))
    lines: list[dict[str, Any]] = [
        {"kind": "start", "step": 100, "total_steps": 102, "best": best},
        {"kind": "valid", "step": 101, "auc": 0.6},
        {"kind": "train", "step": 102, "loss": 0.5, "examples_per_s": 10.0},
    ]
    for line in lines:
        bar.draw(line)
    bar.close()
    assert f"best auc {shown}" in capsys.readouterr().err
