"""What a run will take and cost on given hardware: a step's parts, throughput, hours, money."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rtrain.data.cursor import batches_per_epoch, largest_share
from rtrain.data.protocol import NotCounted
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh
from rtrain.outlook.failures import Expected, Failing, expected
from rtrain.outlook.kernels import RTRAINS, Practice
from rtrain.outlook.profile import Profile
from rtrain.outlook.step import Step, Stepper
from rtrain.planning import Plan, check
from rtrain.rounding import ceil_div
from rtrain.run import Run


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a run will take; every figure is computed, none measured."""

    run: str
    hardware: str
    devices: int
    parts: Mapping[str, float]
    """Part of a step -> seconds."""
    unit: str
    """Of `per_second`: tokens or examples."""
    per_second: float
    """Over all devices."""
    mfu: float
    """Model FLOPs of a step by what the devices could do meanwhile at their peak (PaLM, arXiv:2204.02311)."""
    steps: int | None
    """Of the whole run; none: see `steps_from`."""
    steps_from: str
    """Where their number comes from, or why it is not known."""
    price: float | None
    """Of a device for an hour, in whatever money it was given."""
    expected: Expected | None = None
    """What failures leave of its time; none: nothing was said of them."""

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return sum(self.parts.values())

    @property
    def hours(self) -> float | None:
        """Of training, and of what failures take, where something was said of them; no evaluation or start is in it."""
        if self.steps is None:
            return None
        left = 1.0 if self.expected is None else self.expected.goodput
        return self.steps * self.step_s / 3600 / left if left else None

    @property
    def cost(self) -> float | None:
        """Hours x devices x price."""
        return None if self.hours is None or self.price is None else self.hours * self.devices * self.price

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts."""
        return asdict(self) | {"step_s": self.step_s, "hours": self.hours, "cost": self.cost}

    def __str__(self) -> str:
        lines = [f"on {self.devices} x {self.hardware}, computed from its profile, not measured:", ""]
        for name, seconds in self.parts.items():
            lines.append(f"  {name:<22}{1000 * seconds:>12.3f} ms {seconds / self.step_s:>7.1%}")
        lines.append(f"  {'step':<22}{1000 * self.step_s:>12.3f} ms")
        lines += ["", f"{self.per_second:,.0f} {self.unit}/s, {self.per_second / self.devices:,.0f} a device, "]
        lines[-1] += f"{self.mfu:.1%} of the peak (MFU)"
        if self.expected is not None:
            lines.append(str(self.expected))
        if self.steps is None:
            lines.append(f"hours and cost not known: {self.steps_from}")
            return "\n".join(lines)
        if self.hours is None:
            lines.append("hours and cost not known: failures leave no useful time")
            return "\n".join(lines)
        cost = f", {self.cost:,.2f} at {self.price:g} a device and hour" if self.cost is not None else ""
        counted = "" if self.expected is None else ", failures and checkpoints counted"
        lines.append(f"{self.steps:,} steps ({self.steps_from}): {spell_amount(self.hours)} hours{cost}{counted}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def spell_amount(amount: float) -> str:
    """Hours or money: of little three digits that count."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"


def on_hardware(run: Run, profile: Profile) -> Run:
    """The run with the device's memory, unless it says how much, and with GPUs where the device is one."""
    memory = run.cluster.memory_gb_per_worker or profile.memory_bytes / 1024**3
    gpus: Literal[0, 1] = 1 if profile.accelerator else 0
    return replace(run, cluster=replace(run.cluster, memory_gb_per_worker=memory, gpus_per_worker=gpus))


def outlook(
    run: Run,
    profile: Profile,
    *,
    price: float | None = None,
    practice: Practice = RTRAINS,
    plan: Plan | None = None,
    failing: Failing | None = None,
    rows: int | None = None,
    read_rows_s: float | None = None,
) -> Outlook:
    """What the run takes on devices of this profile; `plan`: of it, for where its tables lie.

    `failing`: how nodes fail; needs `plan`. `rows`: of the training split, where the run itself does not know.
    `read_rows_s`: that one rank's reader decodes in a second, beside training.

    Raises:
        ConfigError: what `planning.check` refuses; a price that is not positive; a step that cannot be counted.
    """
    if price is not None and not price > 0:
        raise ConfigError(f"--price: must be above 0, got {price:g}")
    mesh = check(run)
    step = counted_step(Stepper(run=run, profile=profile, practice=practice), run, mesh, plan)
    if read_rows_s is not None:
        # The reader works ahead: a step waits for what it cannot read meanwhile.
        read_s = largest_share(run.global_batch, mesh.readers(run.blueprint.dealt)) / read_rows_s
        step = replace(step, parts={**step.parts, "waiting for input": max(0.0, read_s - step.seconds)})
    found = summed_up(run, profile, mesh, step, price=price, rows=rows)
    if failing is None or plan is None:
        return found
    return replace(found, expected=expected(run, plan, profile, failing, step_s=step.seconds))


def counted_step(stepper: Stepper, run: Run, mesh: Mesh, plan: Plan | None = None) -> Step:
    """A step at the run's own layout.

    Raises:
        ConfigError: it cannot be counted; says why.
    """
    try:
        return stepper.step(run.parallel, mesh, plan.tables if plan else ())
    except NotCounted as error:
        raise ConfigError(f"--hardware: a step's time cannot be computed: {error}. Use plan without it") from error


def summed_up(
    run: Run, profile: Profile, mesh: Mesh, step: Step, *, price: float | None, rows: int | None = None
) -> Outlook:
    """The outlook that a step's time makes; `rows`: as `outlook`."""
    tokens = run.blueprint.dealt == "tokens"
    units = run.global_batch * (run.data.blank(1, 1).target.shape[1] if tokens else 1)
    steps, source = steps_of(run, rows)
    peak = profile.peak(run.parallel.precision) * mesh.world_size
    return Outlook(
        run=run.name,
        hardware=profile.name,
        devices=mesh.world_size,
        parts=step.parts,
        unit="tokens" if tokens else "examples",
        per_second=units / step.seconds,
        mfu=step.flops / (step.seconds * peak),
        steps=steps,
        steps_from=source,
        price=price,
    )


def steps_of(run: Run, rows: int | None = None) -> tuple[int | None, str]:
    """Optimizer steps of the whole run, and where that number comes from, or why there is none."""
    duration, known = run.duration, run.data.train_rows
    if known is not None or rows is not None:
        count, source = (rows, "--rows") if known is None else (known, "data.train_rows")
        assert count is not None
        return duration.limit(count, batches_per_epoch(count, run.global_batch)), f"duration, of {source}"
    if duration.steps is not None:
        return duration.steps, "duration.steps" if duration.epochs is None else "duration.steps, or fewer"
    if duration.samples is not None:
        return ceil_div(duration.samples, run.global_batch), "duration.samples"
    return None, "duration is in epochs, and how many rows one has, only open data tell. Give --rows, or duration.steps"
