"""Replicas by load: what a command line says, and what is foreseen of loads that rise, fall, and come again."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rtrain.errors import ConfigError
from rtrain.serving.forecast import ALIKE, Forecast, Foreseeing
from rtrain.serving.scale import LOOK_BACK_S, Scale, device_of_replica


def seen(values: Any, season: int = 0) -> Forecast:
    found = Forecast(season)
    for value in values:
        found.see(float(value))
    return found


def test_a_steady_load_stays() -> None:
    assert seen([7] * 50).ahead(20) == pytest.approx(7) and Forecast().ahead(5) == 0


def test_a_rise_is_foreseen_and_a_fall_is_not() -> None:
    rising, falling = seen(range(100)), seen(range(100, 0, -1))
    assert 102 < rising.ahead(6) < 106, "six later it is 105, and the trend is damped"
    assert rising.ahead(1000) < 99 + 25, "of a rise nobody knows that it goes on for ever"
    assert falling.ahead(6) <= falling.ahead(1) + 1e-9 <= 3, "a replica that ends too early is missed"


def test_what_came_a_season_ago_comes_again_as_today_compares() -> None:
    day = [10.0] * 40 + [80.0] * 10 + [10.0] * 50
    found = seen([*day, *day[:37]], season=100)
    assert found.ahead(2) == pytest.approx(10) and found.ahead(6) == pytest.approx(80), "the peak is four later"
    busier = seen([*day, *(1.5 * value for value in day[:37])], season=100)
    assert busier.ahead(6) == pytest.approx(120)
    much = seen([*day, *(9 * value for value in day[:37])], season=100)
    assert much.ahead(6) == pytest.approx(160), "twice the season before at most"
    assert seen(day[: 99 + ALIKE], season=100).ahead(6) == pytest.approx(seen(day[: 99 + ALIKE]).ahead(6))


def test_days_with_noise_are_served_in_time() -> None:
    """Replicas take 12 looks to start: by the load of now a rise is met too late, foreseen it is met."""
    draw, day, late = np.random.default_rng(0), 288, 12
    load = [60 + 50 * math.sin(2 * math.pi * n / day) + 40 * (100 <= n % day < 130) for n in range(4 * day)]
    load = [max(0.0, value + draw.normal(0, 2)) for value in load]

    def short(wanted: list[float]) -> float:
        """Share of looks at which the replicas that were wanted `late` ago are too few, of the last two days."""
        there = [math.ceil(value / 10) for value in wanted]
        needed = [math.ceil(value / 10) for value in load]
        return sum(needed[n] > max(there[n - late], there[n - late - 1]) for n in range(2 * day, 4 * day)) / (2 * day)

    found, foreseen = Forecast(day), []
    for value in load:
        found.see(value)
        foreseen.append(max(value, found.ahead(late)))
    now, soon = short(load), short(foreseen)
    assert now > 0.3 and soon < 0.05, (now, soon)
    wasted = np.mean(foreseen[2 * day :]) / np.mean(load[2 * day :])
    assert wasted < 1.2, f"{wasted:.2f} of the replicas that the load needs"


@dataclass
class Context:
    """What Serve tells a policy."""

    total_num_requests: float
    current_time: float
    config: Any


@dataclass
class Config:
    target_ongoing_requests: float = 5.0


def test_the_policy_looks_every_so_often_and_never_asks_for_less_than_now() -> None:
    policy, wanted = Foreseeing(ahead_s=30.0, season_s=0.0, every_s=10.0), []
    for tenth in range(6000):  # Serve asks ten times a second
        at = tenth / 10
        wanted.append(policy(Context(at / 4, at, Config()))[0])
    assert policy._forecast._seen == 60, "one value in ten seconds"
    now = [math.ceil(tenth / 40 / 5) for tenth in range(6000)]
    assert all(a >= b for a, b in zip(wanted, now, strict=True))
    assert wanted[5000] == math.ceil((500 + 30) / 4 / 5), "half a minute ahead of a steady rise"
    late = policy(Context(3, 10**6, Config()))[0]
    assert late >= 1 and policy._forecast._seen == 61, "a pause is one value, not a crowd"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"least": 1.5}, "Scale.least: must be a whole number of at least 1, got 1.5"),
        ({"least": True}, "Scale.least: must be a whole number"),
        ({"least": "x"}, "Scale.least: must be a whole number of at least 1, got 'x'"),
        ({"most": 2.5}, "Scale.most: must be a whole number"),
        ({"most": 8, "ahead_s": float("inf")}, "Scale.ahead_s: must be a number, got inf"),
        ({"gpus": float("nan")}, "Scale.gpus: must be a number, got nan"),
        ({"ahead_s": 90}, "Scale.ahead_s: 90, but replicas are always 1. Set most"),
        ({"least": 0}, "Scale.least: must be a whole number of at least 1, got 0"),
        ({"least": 4, "most": 2}, "Scale.most: 2, less than the 4"),
        ({"waiting": 0}, "Scale.waiting"),
        ({"ongoing": 0}, "Scale.ongoing: must be above 0"),
        ({"ahead_s": -1}, "Scale.ahead_s: must be at least 0"),
        ({"most": 2, "season_s": 50}, "fewer than ten looks"),
        ({"gpus": 1, "tables": "disk"}, "Scale.tables: device or host, got 'disk'"),
        ({"shards": -1}, "Scale.shards: must be a whole number of at least 0, got -1"),
        ({"shards": 2, "copies": 0}, "Scale.copies: must be a whole number of at least 1, got 0"),
        ({"copies": 2}, "2 of each shard, but there are none. Set shards"),
        ({"gpus": 1, "tables": "host", "shards": 2}, "the shards have them. Set tables to device, or shards to 0"),
        ({"tables": "host"}, "Scale.tables: host, where all memory is the host's. Set device, or gpus"),
    ],
)
def test_scales_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Scale(**given)
    assert said in str(refused.value)


def test_options_are_serves_own() -> None:
    from ray.serve.config import AutoscalingConfig, BackpressureConfig

    assert (
        Scale(least=3).options()["num_replicas"] == 3 and "autoscaling_config" not in Scale(least=2, most=2).options()
    )
    options = Scale(least=1, most=4, ahead_s=60, season_s=86_400).options()
    assert BackpressureConfig(**options["backpressure_config"]).status_code == 429
    found = AutoscalingConfig(**options["autoscaling_config"])
    assert (found.min_replicas, found.max_replicas) == (1, 4)
    policy = found.policy.get_policy()(**found.policy.policy_kwargs)
    assert policy(Context(40, 0.0, Config()))[0] == 8
    assert found.policy.policy_kwargs["ahead_s"] == 60 + LOOK_BACK_S + 5.0, "what Serve takes to see and believe a load"
    assert "policy" not in Scale(least=1, most=4).options()["autoscaling_config"], "by the load of now: Serve's own"
    begins = {first: Scale(least=2, most=4).options(first) for first in (0, 1, 3, 9)}
    assert {first: of["autoscaling_config"].get("initial_replicas") for first, of in begins.items()} == {
        0: None, 1: 2, 3: 3, 9: 4
    }  # fmt: skip
    assert Scale(least=2).options(7) == Scale(least=2).options(), "a number that is said is kept"


def test_gpus_of_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "num_gpus" not in Scale(least=2).options()["ray_actor_options"]
    assert Scale(most=4, gpus=0.25).options()["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 0.25}
    for wrong in (-1.0, 1.5):
        with pytest.raises(ConfigError, match="Scale.gpus"):
            Scale(gpus=wrong)
    assert device_of_replica() == "cpu"
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="Ray gave this replica a GPU"):
        device_of_replica()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device_of_replica() == "cuda"
