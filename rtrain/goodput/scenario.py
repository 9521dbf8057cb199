"""What is simulated: the machines, how they fail and come back, and what a checkpoint and a restart take."""

import math
from dataclasses import dataclass, fields

from rtrain.errors import ConfigError

HOUR_S, DAY_S = 3600.0, 86400.0


def option(name: str) -> str:
    """A field as the command line spells it."""
    return "--" + name.removesuffix("_per_device_hour").replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run of `days` on `nodes`. Failures and preemptions of a node come at a constant rate (exponential gaps).

    Raises:
        ConfigError: a value out of its range, or one that says something about what never happens.
    """

    nodes: int
    """That the run trains on when all are there."""
    devices_per_node: int = 8
    mtbf_hours: float
    """Mean time between failures of one node; `inf`: none fails."""
    checkpoint_s: float
    """Training stands still for it."""
    write_s: float = 0.0
    """From the end of the stall until the checkpoint is committed, behind training; a failure before that falls back
    to the one before."""
    restart_s: float
    """From an interruption, with all nodes there, until training goes on at the last committed checkpoint."""
    days: float = 14.0
    spares: int = 0
    """Nodes beyond `nodes` that wait, are paid and fail as the others, and take a lost node's place at once."""
    repair_hours: float = 12.0
    """Until a failed node is back, repaired or replaced."""
    elastic: bool = False
    """Goes on with the nodes that are left, and grows again; else all of `nodes` have to be there."""
    preemptions_per_day: float = 0.0
    """Of one node: how often a spot node is taken away; 0: on demand."""
    notice_s: float | None = None
    """Seconds before a preemption in which it is known; none: it comes as a failure does."""
    return_hours: float | None = None
    """Until a preempted node's place is filled; none: `repair_hours`."""
    price_per_device_hour: float | None = None
    """Of every node that is there, training or not, in any currency."""

    def __post_init__(self) -> None:
        for name in ("nodes", "devices_per_node", "mtbf_hours", "checkpoint_s", "days"):
            _at_least(name, getattr(self, name), above=True)
        for name in ("write_s", "restart_s", "spares", "repair_hours", "preemptions_per_day"):
            _at_least(name, getattr(self, name))
        for name in ("notice_s", "return_hours", "price_per_device_hour"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), above=name == "price_per_device_hour")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "mtbf_hours" and value is not None and not math.isfinite(value):
                raise ConfigError(f"{option(field.name)}: {value} is no duration or count; give a finite number")
        for name in ("notice_s", "return_hours"):
            if getattr(self, name) is not None and not self.preemptions_per_day:
                raise ConfigError(
                    f"{option(name)}: {getattr(self, name):g} is of preemptions, but --preemptions-per-day is 0, so "
                    f"none comes. Give --preemptions-per-day above 0, or leave {option(name)} out"
                )

    @property
    def machines(self) -> int:
        """Nodes and spares."""
        return self.nodes + self.spares

    @property
    def horizon_s(self) -> float:
        """The whole of the simulated wall time, in seconds."""
        return self.days * DAY_S

    @property
    def failures_per_s(self) -> float:
        """Of one node, without preemptions."""
        return 1 / (self.mtbf_hours * HOUR_S)

    @property
    def preemptions_per_s(self) -> float:
        """Of one node."""
        return self.preemptions_per_day / DAY_S

    @property
    def interruptions_per_s(self) -> float:
        """Failures and preemptions of one node."""
        return self.failures_per_s + self.preemptions_per_s

    @property
    def saves_on_notice(self) -> bool:
        """Whether a preemption's notice is long enough for a checkpoint, stall and writing."""
        return bool(self.preemptions_per_day) and (self.notice_s or 0.0) >= self.checkpoint_s + self.write_s

    @property
    def repair_s(self) -> float:
        """Seconds until a failed node is back."""
        return self.repair_hours * HOUR_S

    @property
    def return_s(self) -> float:
        """Seconds until a preempted node's place is filled."""
        return (self.repair_hours if self.return_hours is None else self.return_hours) * HOUR_S

    def check_interval(self, every_s: float) -> None:
        """Refuse a checkpoint interval that this run cannot keep.

        Raises:
            ConfigError: not above 0, shorter than a checkpoint's writing, or longer than the run.
        """
        _at_least("checkpoint_every_s", every_s, above=True)
        if every_s < self.write_s:
            raise ConfigError(
                f"--checkpoint-every-s: {every_s:g} s, but a checkpoint takes {self.write_s:g} s to be written "
                f"(--write-s), so the next would wait for it. Give at least {self.write_s:g}"
            )
        if every_s >= self.horizon_s:
            raise ConfigError(
                f"--checkpoint-every-s: {every_s:g} s, but the run ends after {self.horizon_s:g} s (--days "
                f"{self.days:g}), so no checkpoint would be taken. Give less, or more --days"
            )


def _at_least(name: str, value: float, *, above: bool = False) -> None:
    # Written so that nan, which compares false with everything, is refused.
    if not (value > 0 if above else value >= 0):
        bound = "above 0" if above else "0 or more"
        raise ConfigError(f"{option(name)}: must be {bound}, got {value:g}. Give a number {bound}")
