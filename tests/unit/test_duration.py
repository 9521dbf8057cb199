"""Durations: which steps are due, how long a whole is, and configs of before there were any."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import bpr_movielens, dlrm_movielens
from rtrain import config
from rtrain.data.cursor import Cursor, next_bounds
from rtrain.duration import Duration
from rtrain.errors import ConfigError
from rtrain.run import Checkpoint, Evaluation, Run
from rtrain.training.events import State

some, few = st.none() | st.integers(1, 50), st.none() | st.integers(1, 4)


def walk(rows: int, batch: int, steps: int) -> list[State]:
    """Where training is after 0, 1, 2 ... steps."""
    state = State(total_steps=steps, rows=rows)
    states = [state]
    for step in range(steps):
        _, stop = next_bounds(state.cursor, rows, batch)
        state = replace(state, step=step + 1, cursor=state.cursor.after(stop, rows))
        states.append(state)
    return states


@given(
    steps=some, samples=some, epochs=st.none() | st.integers(1, 4), rows=st.integers(1, 40), batch=st.integers(1, 50)
)
def test_a_whole_ends_with_the_first_step_at_which_it_is_due(
    steps: int | None, samples: int | None, epochs: int | None, rows: int, batch: int
) -> None:
    if steps is samples is epochs is None:
        return
    duration = Duration(steps=steps, samples=samples, epochs=epochs)
    states = walk(rows, batch, 200)
    per_epoch = next(s.step for s in states if s.cursor.epoch == 1)
    first = next(n for n, (a, b) in enumerate(pairwise(states), 1) if duration.due(a, b))
    assert duration.limit(rows, per_epoch) == first


def test_it_is_due_again_at_each_multiple() -> None:
    states = walk(rows=10, batch=4, steps=12)  # epochs of 3 steps: 3, 3 and 4 rows

    def due(every: Duration) -> list[int]:
        return [b.step for a, b in pairwise(states) if every.due(a, b)]

    assert due(Duration(steps=5)) == [5, 10]
    assert due(Duration(epochs=2)) == [6, 12]
    assert due(Duration(samples=10)) == [3, 6, 9, 12]
    assert due(Duration(samples=7)) == [3, 5, 7, 9, 11]
    assert due(Duration(steps=5, epochs=2)) == [5, 6, 10, 12]
    assert due(Duration(seconds=1e-9)) == [], "which only who has a clock can say"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give at least one of steps, samples, epochs and seconds"),
        ({"steps": 0}, "steps must be at least 1, or none, got 0"),
        ({"epochs": -1}, "epochs must be at least 1, or none, got -1"),
        ({"steps": 1, "seconds": 0.0}, "seconds must be above 0, or none, got 0.0"),
    ],
)
def test_what_is_no_duration(given: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Duration(**given)  # type: ignore[arg-type]


def test_a_run_needs_an_end_that_its_schedule_knows() -> None:
    with pytest.raises(ConfigError, match="duration: it has seconds alone"):
        replace(dlrm_movielens.run(), duration=Duration(seconds=60))


def test_a_config_of_before_there_were_durations_is_read() -> None:
    run = bpr_movielens.run()
    stored = config.to_dict(run)
    del stored["duration"], stored["evaluation"]["every"], stored["checkpoint"]["every"]
    stored |= {"epochs": 3, "max_steps": 70}
    stored["evaluation"] |= {"every_steps": None}
    stored["checkpoint"] |= {"every_steps": 40, "every_s": 30.0}
    read: Run = config.from_dict(stored)
    assert read == replace(
        run,
        duration=Duration(epochs=3, steps=70),
        evaluation=replace(run.evaluation, every=Duration(epochs=1)),
        checkpoint=replace(run.checkpoint, every=Duration(steps=40, seconds=30.0)),
    )
    stored["evaluation"]["every_steps"] = 20
    assert config.from_dict(stored).evaluation.every == Duration(steps=20)


def test_a_beginning_where_no_length_is_given() -> None:
    assert Evaluation().every == Duration(epochs=1) and Checkpoint().every == Duration(steps=200)
    assert State(total_steps=1, rows=4, cursor=Cursor(epoch=1, sample=2)).epoch == 1.5
