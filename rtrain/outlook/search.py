"""All legal layouts for a number of devices, the fastest that fits first."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from rtrain.data.cursor import largest_share
from rtrain.data.protocol import NotCounted
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel, PipelineSchedule
from rtrain.outlook.flops import distinct
from rtrain.outlook.memory import held_bytes
from rtrain.outlook.outlook import Outlook, summed_up
from rtrain.outlook.profile import Profile
from rtrain.outlook.step import Step, Stepper
from rtrain.parallel.legal import reasons_against, reasons_against_degrees
from rtrain.run import Run

SHOWN = 10
DENSE: tuple[dict[str, Any], ...] = ({"dense": "ddp"}, *({"zero_stage": stage} for stage in (0, 1, 2, 3)))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout that fits."""

    parallel: Parallel
    mesh: Mesh
    step: Step
    held_bytes: int
    """On its fullest rank."""

    def __str__(self) -> str:
        p = self.parallel
        dense = "ddp" if p.dense == "ddp" else f"zero {p.zero_stage}"
        schedule = f" {p.schedule}" if self.mesh.pipeline > 1 else ""
        degrees = f"data {self.mesh.data} tensor {self.mesh.tensor} pipeline {self.mesh.pipeline}{schedule}"
        again = f", recompute {p.recompute}" if p.recompute != "nothing" else ""
        return f"{degrees}, microbatches {p.microbatches}, {dense}{again}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found."""

    layouts: tuple[Layout, ...]
    """The fastest first; of equally fast ones that which holds least."""
    legal: int
    """Layouts that were looked at."""
    too_large: int
    """Those of them that do not fit."""
    best: Outlook

    @property
    def why(self) -> str:
        """Why the first one wins, in a line."""
        first = self.layouts[0]
        cut = (first.mesh, first.parallel.schedule)
        second = next((at for at in self.layouts if (at.mesh, at.parallel.schedule) != cut), None)
        if second is None:
            return "no other degrees of data, tensor and pipeline ranks fit; of these it is the fastest way"
        names = {**first.step.parts, **second.step.parts}
        gains = {n: second.step.parts.get(n, 0.0) - first.step.parts.get(n, 0.0) for n in names}
        part = max(gains, key=gains.__getitem__)
        behind = 1000 * (second.step.seconds - first.step.seconds)
        if gains[part] <= 0:
            return f"the next cut ({second}) is as fast"
        return (
            f"{1000 * gains[part]:.3f} ms less a step of {part!r} than the next cut ({second}), which takes "
            f"{behind:.3f} ms more in all"
        )

    def _distinct(self) -> list[Layout]:
        """Of layouts that differ in DDP or the ZeRO stage alone, and are as fast, that which holds least."""
        seen = dict[Any, Layout]()
        for at in self.layouts:  # of equally fast ones it comes first
            parallel = at.parallel
            alike = (at.mesh, parallel.schedule, parallel.microbatches, parallel.recompute, at.step.seconds)
            seen.setdefault(alike, at)
        return list(seen.values())

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts; of the layouts the first 100."""
        rows = [
            {"parallel": asdict(at.parallel), "mesh": asdict(at.mesh), "step_s": at.step.seconds,
             "parts": dict(at.step.parts), "held_bytes": at.held_bytes}
            for at in self.layouts[:100]
        ]  # fmt: skip
        counts = {"legal": self.legal, "too_large": self.too_large, "why": self.why}
        return counts | {"layouts": rows, "best": self.best.to_json()}

    def __str__(self) -> str:
        fits = f"{len(self.layouts):,} of {self.legal:,} legal layouts fit; the fastest:"
        lines = [fits, "", f"{'step':>12} {'GiB a device':>13}  layout"]
        for at in self._distinct()[:SHOWN]:
            lines.append(f"{1000 * at.step.seconds:>9.3f} ms {at.held_bytes / 1024**3:>13.3g}  {at}")
        lines += ["", f"first: {self.why}", "", str(self.best)]
        return "\n".join(lines)


def search(run: Run, profile: Profile, *, devices: int, price: float | None = None, rows: int | None = None) -> Found:
    """Every legal layout of the run's model and global batch over so many devices, of which those that fit are ranked.

    `rows`: of the training split, where the run itself does not know.

    Of data, tensor and pipeline degrees, DDP and ZeRO stages, schedules, and microbatches that divide a rank's rows. A
    layout that does not fit is looked at once more with its pieces recomputed.

    Raises:
        ConfigError: no layout is legal, or none fits, or a step cannot be counted.
    """
    stepper, given = Stepper(run=run, profile=profile), run.cluster.memory_gb_per_worker
    memory = profile.memory_bytes if given is None else given * 1024**3
    fitting, legal, least = [], 0, float("inf")
    try:
        for plain, mesh in layouts(stepper, devices):
            for parallel in (plain, *_recomputing(stepper, plain, mesh)):
                legal += 1
                held = held_bytes(stepper, parallel, mesh)
                least = min(least, held)
                if held <= memory:
                    step = stepper.step(parallel, mesh)
                    fitting.append(Layout(parallel=parallel, mesh=mesh, step=step, held_bytes=held))
                    break
    except NotCounted as error:
        raise ConfigError(f"--search: a step's time cannot be computed: {error}. Use plan without it") from error
    if not legal:
        raise ConfigError(
            f"--search: no layout of {devices} devices is legal for a global batch of {run.global_batch}. "
            "Raise global_batch, or take fewer devices"
        )
    if not fitting:
        raise ConfigError(
            f"--search: none of {legal:,} legal layouts of {devices} devices fits: the smallest needs "
            f"{least / 1024**3:.3g} GiB a device, which has {memory / 1024**3:.3g}. Take more devices, lower "
            "global_batch, or make the model smaller"
        )
    fitting.sort(key=lambda at: (at.step.seconds, at.held_bytes))
    best = summed_up(run, profile, fitting[0].mesh, fitting[0].step, price=price, rows=rows)
    return Found(layouts=tuple(fitting), legal=legal, too_large=legal - len(fitting), best=best)


def layouts(stepper: Stepper, devices: int) -> Iterator[tuple[Parallel, Mesh]]:
    """All that are legal. What asks for a look at pieces is asked once a tensor degree."""
    run, blueprint, model = stepper.run, stepper.blueprint, type(stepper.run.model).__name__
    alike = replace(blueprint, pieces=distinct(blueprint.pieces)[0])
    for tensor in _divisors(devices):
        mesh = Mesh(pipeline=1, data=1, tensor=tensor)
        of_tensor = replace(run.parallel, data=None, tensor=tensor, pipeline=1, microbatches=1)
        if any(
            reasons_against(
                of_tensor, mesh, alike, run.sparse_optim, on_gpu=stepper.profile.accelerator,
                global_batch=run.global_batch, model=model,
            )
        ):  # fmt: skip
            continue
        for pipeline in _divisors(devices // tensor):
            if pipeline > len(blueprint.pieces):
                continue
            mesh = Mesh(pipeline=pipeline, data=devices // tensor // pipeline, tensor=tensor)
            at = replace(of_tensor, pipeline=pipeline)
            if any(blueprint.against(at, mesh)):
                continue
            for changed in _of_mesh(at, mesh, run.global_batch, mesh.readers(blueprint.dealt)):
                if not any(
                    reasons_against_degrees(changed, mesh, blueprint, global_batch=run.global_batch, model=model)
                ):
                    yield changed, mesh


def _recomputing(stepper: Stepper, parallel: Parallel, mesh: Mesh) -> Iterator[Parallel]:
    """The same layout with its pieces recomputed, where that is another one and legal."""
    again, run = replace(parallel, recompute="pieces"), stepper.run
    against: dict[str, Any] = {"global_batch": run.global_batch, "model": type(run.model).__name__}
    if again != parallel and not any(reasons_against_degrees(again, mesh, stepper.blueprint, **against)):
        yield again


def _of_mesh(parallel: Parallel, mesh: Mesh, global_batch: int, readers: int) -> Iterator[Parallel]:
    """With every number of microbatches, schedule, and way to keep data ranks in step."""
    if global_batch < readers:
        return
    schedules = get_args(PipelineSchedule) if mesh.pipeline > 1 else ("1f1b",)
    for microbatches in _divisors(largest_share(global_batch, readers)):
        for schedule in schedules:
            for dense in DENSE:
                yield replace(parallel, microbatches=microbatches, schedule=schedule, **{"dense": "zero"} | dense)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
