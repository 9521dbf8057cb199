"""What failures leave of a run's time at the step that was foreseen, and how often to take a checkpoint.

By the closed form of `rtrain.goodput`, which simulates what this leaves out: spares that run out, repairs that are
waited for, elastic runs, spot nodes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rtrain.errors import ConfigError
from rtrain.goodput.closed_form import daly_s, goodput, interruption_s
from rtrain.goodput.scenario import HOUR_S, Scenario
from rtrain.outlook.profile import Profile
from rtrain.parallel.placement import copied_bytes
from rtrain.parallel.stage import parameters_of_ranks
from rtrain.planning import Plan
from rtrain.rounding import ceil_div
from rtrain.run import Run

TO_HOST = 20e9
"""Bytes/s from a GPU to its host: PCIe 4 x16 gives 25 to 28 of its 32 GB/s to large copies; a stated assumption."""


@dataclass(frozen=True, kw_only=True)
class Failing:
    """How nodes fail, and what coming back takes.

    Raises:
        ConfigError: a figure that is not above 0.
    """

    mtbf_hours: float
    """Mean time between failures of one node."""
    restart_s: float = 180.0
    """From a failure until training goes on, a node being at hand: `python RECIPE chaos` measures it."""
    write_gb_s: float = 1.0
    """10^9 bytes/s with which a node writes to the storage."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0 or math.isinf(value):
                raise ConfigError(f"--{name.replace('_', '-')}: must be a number above 0, got {value:g}")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is left."""

    nodes: int
    interruption_s: float
    """Mean seconds between two failures of any of them."""
    checkpoint_bytes: int
    """All ranks'."""
    stall_s: float
    """For which training stands still."""
    write_s: float
    """Then until it is committed, behind training (0: training stands still for it too)."""
    every_s: float
    """Training between two checkpoints for which goodput is best (Daly 2006)."""
    every_steps: int
    goodput: float
    """Useful share of the wall time."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        nodes = f"{self.nodes:,} node{'s' * (self.nodes > 1)}"
        return (
            f"failures: one every {self.interruption_s / HOUR_S:,.1f} hours on {nodes}; a checkpoint of "
            f"{self.checkpoint_bytes / 1e9:,.3g} GB stalls {self.stall_s:.3g} s and is written in {self.write_s:.3g}; "
            f"best every {self.every_steps:,} steps ({self.every_s / 60:.1f} min): goodput {self.goodput:.2%}"
        )


def expected(run: Run, plan: Plan, profile: Profile, failing: Failing, *, step_s: float) -> Expected:
    """What failures leave of the run at its layout, if a node is always at hand for one that failed."""
    dense = parameters_of_ranks(run.blueprint.pieces, run.parallel, plan.mesh)
    copied = copied_bytes(run.sparse_optim, plan.tables, plan.mesh, dense_parameters=dense)
    nodes = ceil_div(plan.mesh.world_size, profile.devices_per_node)
    stall_s, write_s = _taken_s(copied, run, profile, failing)
    scenario = Scenario(
        nodes=nodes, devices_per_node=profile.devices_per_node, mtbf_hours=failing.mtbf_hours, checkpoint_s=stall_s,
        write_s=write_s, restart_s=failing.restart_s, spares=1,
    )  # fmt: skip
    # Whole steps, and none begun before the last is written.
    every_steps = max(1, round(daly_s(scenario) / step_s), math.ceil(write_s / step_s))
    return Expected(
        nodes=nodes,
        interruption_s=interruption_s(scenario),
        checkpoint_bytes=sum(copied),
        stall_s=stall_s,
        write_s=write_s,
        every_s=every_steps * step_s,
        every_steps=every_steps,
        goodput=goodput(scenario, every_steps * step_s),
    )


def _taken_s(copied: Sequence[int], run: Run, profile: Profile, failing: Failing) -> tuple[float, float]:
    """Seconds that training stands still for a checkpoint, and until it is committed then.

    `copied`: bytes of each rank.
    """
    a_node = profile.devices_per_node
    of_nodes = [sum(copied[at : at + a_node]) for at in range(0, len(copied), a_node)]
    write_s = max(of_nodes) / (failing.write_gb_s * 1e9)
    if not run.checkpoint.background:
        return write_s, 0.0
    # A copy in memory is read and written.
    rate = TO_HOST if profile.accelerator else profile.memory_bandwidth * profile.memory_efficiency / 2
    return max(copied) / rate, write_s
