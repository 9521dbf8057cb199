"""What `plan` foresees, as pictures: every rank, every kind of bytes, every part of a step."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

import rtrain
from recipes.dlrm_movielens import run as main_run
from rtrain.planning import plan
from rtrain.report.foresight import RANKS, draw_plan
from tests.unit.test_cli import recipe as recipe  # a recipe's command line, in this process


@pytest.fixture
def run() -> Any:
    return rtrain.override(main_run(), {"cluster.workers": 4, "cluster.memory_gb_per_worker": 1.0})


def test_every_rank_has_a_bar_as_high_as_its_bytes(run: Any) -> None:
    planned = plan(run)
    (ax,) = draw_plan(planned).axes
    tops: dict[float, float] = {}
    for bar in ax.patches:
        at = round(bar.get_x() + bar.get_width() / 2)
        tops[at] = max(tops.get(at, 0.0), bar.get_y() + bar.get_height())
    wanted = {row["rank"]: sum(v for k, v in row.items() if k != "rank") for row in planned.bytes_per_rank}
    assert tops == pytest.approx({rank: total / 1024 for rank, total in wanted.items()})
    assert "KiB a rank" in ax.get_title(loc="left")
    assert "of its memory" in ax.get_title(loc="left")


def test_of_many_ranks_the_first_are_drawn(run: Any) -> None:
    many = plan(rtrain.override(run, {"cluster.workers": 64}))
    (ax,) = draw_plan(many).axes
    assert {round(bar.get_x() + bar.get_width() / 2) for bar in ax.patches} == set(range(RANKS))
    assert "of 64" in ax.get_xlabel()


def test_parts_of_a_step_stand_beside(run: Any) -> None:
    memory, step = draw_plan(plan(run), {"products": 0.25, "optimizer": 0.001}).axes
    assert [bar.get_width() for bar in step.patches] == [1.0, 250.0]
    assert [label.get_text() for label in step.get_yticklabels()] == ["optimizer", "products"]
    assert memory.get_legend() is not None


@pytest.mark.parametrize("more", [(), ("--hardware", "cpu"), ("--hardware", "cpu", "--scale", "2..4")])
def test_the_command_line(recipe: Any, tmp_path: Path, more: tuple[str, ...]) -> None:
    path = tmp_path / "plan.png"
    ended = recipe("plan", "--json", "--picture", str(path), *more)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)
    assert imread(path).shape[2] == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "--picture", "plan.jpg"), "does not end in .png"),
        (("plan", "--picture", "no/such/folder/plan.png"), "cannot be written"),
        (("plan", "--hardware", "cpu", "--search", "--picture", "plan.png"), "--picture: a search is a list"),
        (("train", "--picture", "plan.png"), "--picture: train does not take it; it is of plan"),
    ],
)
def test_what_is_not_drawn(recipe: Any, words: tuple[str, ...], says: str) -> None:
    ended = recipe(*words)
    assert ended.code == 2
    assert says in ended.err
