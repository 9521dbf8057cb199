"""The schedule at its corners, and the values that no optimizer takes."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtrain.errors import ConfigError
from rtrain.optim import SGD, Adagrad, Adam, AdamW, RowWiseAdagrad, Schedule


@pytest.mark.parametrize("step", [0, 1, 99, 100, 10_000])
def test_the_default_schedule_changes_nothing(step: int) -> None:
    assert Schedule().factor(step, 100) == 1.0


def test_warm_up_rises_by_equal_steps_and_never_starts_at_zero() -> None:
    schedule = Schedule(warmup_steps=4)
    assert [schedule.factor(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Schedule(decay="linear"), 0, 1.0),
        (Schedule(decay="linear"), 50, 0.5),
        (Schedule(decay="linear"), 75, 0.25),
        (Schedule(decay="linear"), 100, 0.0),
        (Schedule(decay="linear"), 101, 0.0),
        (Schedule(decay="linear", floor=0.2), 50, 0.6),
        (Schedule(decay="linear", floor=0.2), 100, 0.2),
        (Schedule(decay="linear", warmup_steps=20), 19, 1.0),
        (Schedule(decay="linear", warmup_steps=20), 20, 1.0),
        (Schedule(decay="linear", warmup_steps=20), 60, 0.5),
        (Schedule(decay="cosine"), 0, 1.0),
        (Schedule(decay="cosine"), 25, 0.5 + math.sqrt(0.125)),
        (Schedule(decay="cosine"), 50, 0.5),
        (Schedule(decay="cosine"), 100, 0.0),
        (Schedule(decay="cosine", floor=0.5), 50, 0.75),
        (Schedule(decay="cosine", floor=0.5), 1000, 0.5),
        (Schedule(decay="constant", floor=0.5), 1000, 1.0),
        (Schedule(decay="linear", warmup_steps=100), 100, 1.0),
        (Schedule(decay="linear", warmup_steps=200), 100, 101 / 200),
    ],
)
def test_the_factor_at_the_corners_of_100_steps(schedule: Schedule, step: int, expected: float) -> None:
    assert schedule.factor(step, 100) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@settings(deadline=None)
@given(warmup=st.integers(0, 50), total=st.integers(1, 200), floor=st.floats(0, 1))
def test_the_factor_stays_within_bounds_and_falls_after_the_warm_up(
    decay: Any, warmup: int, total: int, floor: float
) -> None:
    schedule = Schedule(warmup_steps=warmup, decay=decay, floor=floor)
    factors = [schedule.factor(step, total) for step in range(total + 2)]
    assert all(0 < f <= 1 for f in factors[:warmup])
    after = factors[warmup:]
    assert all(floor - 1e-12 <= f <= 1 for f in after)
    assert all(a >= b - 1e-12 for a, b in pairwise(after))


@pytest.mark.parametrize("lr", [0.0, -1e-3, math.nan])
def test_a_learning_rate_that_is_not_positive_is_refused(lr: float) -> None:
    with pytest.raises(ConfigError) as caught:
        AdamW(lr=lr)
    assert str(caught.value) == f"optim.lr: must be positive, got {lr}"
    for sparse in (RowWiseAdagrad, Adagrad, SGD):
        with pytest.raises(ConfigError) as caught:
            sparse(lr=lr)
        assert str(caught.value) == f"sparse_optim.lr: must be positive, got {lr}"


@pytest.mark.parametrize("norm", [-0.5, math.nan])
def test_a_clip_norm_that_is_neither_off_nor_positive_is_refused(norm: float) -> None:
    with pytest.raises(ConfigError) as caught:
        AdamW(clip_norm=norm)
    assert str(caught.value) == f"optim.clip_norm: must be 0 (off) or positive, got {norm}"


def test_build_hands_every_setting_to_torch() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    built = AdamW(lr=0.5, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.25).build([weight])
    (group,) = built.param_groups
    assert group["params"] == [weight]
    assert {k: group[k] for k in ("lr", "betas", "eps", "weight_decay")} == {
        "lr": 0.5,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.25,
    }


@pytest.mark.parametrize(("kind", "where"), [(AdamW, "optim"), (Adam, "sparse_optim")])
@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (math.nan, 0.9)])
def test_betas_outside_their_range_are_refused(betas: tuple[float, float], kind: Any, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(betas=betas)
    assert str(caught.value) == f"{where}.betas: each must be in [0, 1), got {betas}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": -1}, "schedule.warmup_steps: must be at least 0, got -1"),
        ({"floor": -0.1}, "schedule.floor: must be in [0, 1], got -0.1"),
        ({"floor": 1.5}, "schedule.floor: must be in [0, 1], got 1.5"),
        ({"floor": math.nan}, "schedule.floor: must be in [0, 1], got nan"),
    ],
)
def test_a_schedule_out_of_range_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(**fields)
    assert str(caught.value) == message
