"""A run at more and more devices: how much of the time is lost, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rtrain.errors import ConfigError
from rtrain.mesh import lay_out
from rtrain.outlook.outlook import Outlook, counted_step, spell_amount, steps_of, summed_up
from rtrain.outlook.profile import Profile
from rtrain.outlook.step import Stepper
from rtrain.planning import check
from rtrain.run import Run

Scaling = Literal["weak", "strong"]


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """One run at several numbers of devices."""

    scaling: Scaling
    rows: tuple[tuple[int, Outlook], ...]
    """Global batch, and what it takes."""
    left_out: tuple[tuple[int, str], ...]
    """Numbers of devices that cannot be, and why."""
    samples: int | None
    """That all of them are trained on, so that hours and costs compare; none: not known."""

    def efficiency(self, at: Outlook) -> float:
        """Units a second and device, of those at the fewest devices."""
        first = self.rows[0][1]
        return (at.per_second / at.devices) / (first.per_second / first.devices)

    def hours(self, batch: int, at: Outlook) -> float | None:
        """For the same samples."""
        return None if self.samples is None else self.samples / batch * at.step_s / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        rows = []
        for batch, at in self.rows:
            hours = self.hours(batch, at)
            cost = None if hours is None or at.price is None else hours * at.devices * at.price
            measured = {"global_batch": batch, "efficiency": self.efficiency(at), "hours": hours, "cost": cost}
            rows.append(at.to_json() | measured)
        return {"scaling": self.scaling, "rows": rows, "left_out": [list(one) for one in self.left_out]}

    def __str__(self) -> str:
        stays = "rows of a data rank stay" if self.scaling == "weak" else "global_batch stays"
        unit = self.rows[0][1].unit
        lines = [f"{self.scaling} scaling: {stays}; hours and cost for the same samples", ""]
        titles = f"{'devices':>8} {'global_batch':>13} {'step':>13} {unit + '/s':>14}"
        lines.append(f"{titles} {'efficiency':>11} {'hours':>9} {'cost':>12}")
        for row in self.to_json()["rows"]:
            hours = "-" if row["hours"] is None else spell_amount(row["hours"])
            cost = "-" if row["cost"] is None else spell_amount(row["cost"])
            lines.append(
                f"{row['devices']:>8,} {row['global_batch']:>13,} {1000 * row['step_s']:>10.3f} ms "
                f"{row['per_second']:>14,.0f} {row['efficiency']:>11.1%} {hours:>9} {cost:>12}"
            )
        return "\n".join([*lines, *(f"{devices:>8,} left out: {why}" for devices, why in self.left_out)])


def scale(
    run: Run, profile: Profile, *, devices: Sequence[int], scaling: Scaling = "weak", price: float | None = None,
    rows: int | None = None,
) -> Scaled:  # fmt: skip
    """The run's tensor and pipeline degrees at each number of devices, the data degree filling them.

    `rows`: of the training split, where the run itself does not know.

    Raises:
        ConfigError: none of the numbers can be.
    """
    free = replace(run, parallel=replace(run.parallel, data=None))
    blueprint = run.blueprint
    before = lay_out(free.parallel, run.cluster.workers).readers(blueprint.dealt)
    found, left_out = [], []
    for count in devices:
        try:
            mesh = lay_out(free.parallel, count)
            grown = run.global_batch * mesh.readers(blueprint.dealt) // before
            batch = grown if scaling == "weak" else run.global_batch
            at = replace(free, cluster=replace(free.cluster, workers=count), global_batch=max(1, batch))
            check(at)
        except ConfigError as error:
            left_out.append((count, str(error)))
            continue
        step = counted_step(Stepper(run=at, profile=profile), at, mesh)
        found.append((at.global_batch, summed_up(at, profile, mesh, step, price=price, rows=rows)))
    if not found:
        raise ConfigError(f"--scale: none of {', '.join(map(str, devices))} devices can be: {left_out[0][1]}")
    steps = steps_of(run, rows)[0]
    samples = None if steps is None else steps * run.global_batch
    return Scaled(scaling=scaling, rows=tuple(found), left_out=tuple(left_out), samples=samples)
