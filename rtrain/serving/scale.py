"""How many replicas answer, and how many requests may wait for them."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

import ray
import torch

from rtrain.errors import ConfigError
from rtrain.export.artifact import Tables
from rtrain.serving.bodies import RETRY_S

LOOK_BACK_S = 10.5
"""Serve takes the mean of at least so many seconds: it hears from replicas every ten."""
HEALTH_EVERY_S = 2.0
"""Seconds between two questions whether a replica is of use; three refusals in a row, and it starts anew."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Replicas by load: as many as the requests under way need, now or soon.

    Soon is told by the load's trend and by what followed a season ago (`rtrain.serving.forecast`).
    """

    least: int = 1
    most: int | None = None
    """None: as many as `least`, always."""
    ongoing: float = 8.0
    """Requests that are to be under way in each."""
    ahead_s: float = 0.0
    """How far ahead a replica has to be asked for, to be there in time: what one takes to start; 0: by now's load. What
    Serve takes to see a load, and waits before it believes it, is added."""
    season_s: float = 0.0
    """Seconds after which the load begins anew: 86400 of a day; 0: it has no season."""
    every_s: float = 10.0
    """Seconds between two looks at the load."""
    up_s: float = 5.0
    """Seconds for which more replicas have to be wanted before they start."""
    down_s: float = 300.0
    """Seconds for which fewer replicas have to be wanted before some end."""
    at_once: int = 256
    """Requests that a replica takes at once: it answers them in one pass."""
    gpus: float = 0.0
    """GPUs of each replica, or a fraction of one, which several then share; 0: it computes on CPU."""
    tables: Tables = "device"
    """Where tables of a replica with a GPU lie: on it, or in the memory of its host, where more fits."""
    shards: int = 0
    """Processes that share the tables of all replicas, where no machine's memory has them whole; 0: each has all."""
    copies: int = 1
    """Processes that have the same shard: of two, one that dies fails no request."""
    waiting: int = 1000
    """Requests that may wait for a replica, at each proxy and router; further ones are answered 429, Retry-After."""

    def __post_init__(self) -> None:
        for name, lowest in {"least": 1, "most": 1, "at_once": 1, "waiting": 1, "copies": 1, "shards": 0}.items():
            value = getattr(self, name)
            if not (name == "most" and value is None) and not (type(value) is int and value >= lowest):
                raise ConfigError(f"Scale.{name}: must be a whole number of at least {lowest}, got {value!r}")
        for name in ("ongoing", "ahead_s", "season_s", "every_s", "up_s", "down_s", "gpus"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not isfinite(value):
                raise ConfigError(f"Scale.{name}: must be a number, got {value!r}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(f"Scale.gpus: a fraction of one, or a whole number, got {self.gpus:g}")
        if self.tables not in get_args(Tables):
            raise ConfigError(f"Scale.tables: {' or '.join(get_args(Tables))}, got {self.tables!r}")
        if self.copies > 1 and not self.shards:
            raise ConfigError(f"Scale.copies: {self.copies} of each shard, but there are none. Set shards")
        if self.shards and self.tables != "device":
            raise ConfigError("Scale.tables: the shards have them. Set tables to device, or shards to 0")
        if self.tables != "device" and not self.gpus:
            raise ConfigError(f"Scale.tables: {self.tables}, where all memory is the host's. Set device, or gpus")
        if self.most is not None and self.most < self.least:
            raise ConfigError(f"Scale.most: {self.most}, less than the {self.least} of Scale.least")
        for name in ("ongoing", "every_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Scale.{name}: must be above 0, got {getattr(self, name)}")
        for name in ("ahead_s", "season_s", "up_s", "down_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"Scale.{name}: must be at least 0, got {getattr(self, name)}")
        for name in ("ahead_s", "season_s"):
            if getattr(self, name) and self.most is None:
                raise ConfigError(
                    f"Scale.{name}: {getattr(self, name):g}, but replicas are always {self.least}. Set most "
                    "(--replicas 1-8)"
                )
        if 0 < self.season_s < 10 * self.every_s:
            raise ConfigError(f"Scale.season_s: {self.season_s:g}, fewer than ten looks of {self.every_s:g} s each")

    @classmethod
    def by(cls, replicas: "int | Scale") -> "Scale":
        """A number of them, always, or as it is said."""
        return cls(least=replicas) if isinstance(replicas, int) else replicas

    def options(self, first: int = 0) -> dict[str, Any]:
        """Of a deployment; `first`: replicas that it begins with, where they go by the load."""
        found: dict[str, Any] = {
            "max_ongoing_requests": self.at_once,
            "max_queued_requests": self.waiting,
            "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_S},
            "health_check_period_s": HEALTH_EVERY_S,
            "ray_actor_options": {"num_cpus": 0.5} | ({"num_gpus": self.gpus} if self.gpus else {}),
        }
        if self.most is None or self.most == self.least:
            return found | {"num_replicas": self.least}
        scaling: dict[str, Any] = {
            "min_replicas": self.least, "max_replicas": self.most, "target_ongoing_requests": self.ongoing,
            "upscale_delay_s": self.up_s, "downscale_delay_s": self.down_s,
            "look_back_period_s": max(self.every_s, LOOK_BACK_S),
        }  # fmt: skip
        if first:
            scaling["initial_replicas"] = min(max(first, self.least), self.most)
        if self.ahead_s or self.season_s:
            late_s = scaling["look_back_period_s"] + self.up_s
            scaling["policy"] = {
                "policy_function": "rtrain.serving.forecast:Foreseeing",
                "policy_kwargs": {"ahead_s": self.ahead_s + late_s, "season_s": self.season_s, "every_s": self.every_s},
            }
        return found | {"autoscaling_config": scaling}


def always(replicas: int) -> dict[str, Any]:
    """Fields of a `Scale` of so many whatever the load is, and was: what foresees it is taken back."""
    return {"least": replicas, "most": None, "ahead_s": 0.0, "season_s": 0.0}


def device_of_replica() -> str:
    """Where this replica computes: on its GPU, where it was given one.

    Raises:
        ConfigError: Ray gave it one, which torch cannot use.
    """
    if not ray.get_gpu_ids():
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"Scale.gpus: Ray gave this replica a GPU, but torch {torch.__version__} sees none. Install torch for CUDA"
        )
    return "cuda"
