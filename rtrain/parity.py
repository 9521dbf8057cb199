"""`parity`: the proof that a layout trains to the same losses as one process, on this machine, for this very run.

Every layout trains a few steps from the same weights on the same batches, in processes on the CPU
(gloo), and its losses, gradient norms and bytes stand beside those of one process.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rtrain.config import flatten, override
from rtrain.errors import ConfigError, RunFailed, UserError
from rtrain.mesh import Parallel, lay_out
from rtrain.planning import check
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.training.agreement import open_data, refuse
from rtrain.training.processes import in_world
from rtrain.training.trace import Trace, trace

LOSS = 1e-5
"""Largest difference of a loss in nats. float32 sums in another order differ by some 1e-7 of the value, and weights
that were trained with such sums carry that along, over these few steps up to 3e-6."""
LOSS_16_BITS = 3e-3
"""The same where vectors travel, or products are taken, as 16 bits: the last is a 2,048th of the number, or a 256th."""
GRAD_NORM = 5e-4
"""Largest difference of a gradient norm, relative to it; for the same reason."""
GRAD_NORM_BFLOAT16 = 1e-2
"""The same where products are of bfloat16, each rounded to a 256th; 2.3e-3 is what small models were seen to give."""
SLOWER = 0.1
"""Factor on the learning rates, and `EPS` what is added to the root of the squared gradients, at least. At a recipe's
own, two right layouts drift apart by 1e-4 to 1e-3: Adam and Adagrad at 1e-8 make steps of full size of gradients that
are nothing but rounding, and a ReLU whose input is 0 but for rounding takes its gradient on one side alone, which large
steps carry on. So they stay within 3e-6, the loss still falls by a third to two thirds as much, a gradient that is
wrong by 1 % on one of two ranks is seen, and so are wrong factors that a small eps would divide away."""
EPS = {"optim.eps": 1e-5, "sparse_optim.eps": 1e-4}
STEPS = 20

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """One layout beside one process."""

    layout: str
    world_size: int
    max_loss_diff: float
    max_grad_norm_diff: float | None
    """Relative; none where nothing computes the norm."""
    bytes_per_rank: int
    verdict: str
    """"equal", "differs", or why it could not be run."""


@dataclass(frozen=True)
class Refused:
    """A layout that is not legal, and why."""

    layout: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """The table of `rtrain parity`."""

    run: str
    steps: int
    layouts: tuple[Compared, ...]
    refused: tuple[Refused, ...]

    @property
    def holds(self) -> bool:
        """Whether every layout that ran equals one process."""
        return all(c.verdict == "equal" for c in self.layouts)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        wide = max([len(c.layout) for c in self.layouts] + [len("layout")])
        head = f"{'layout':<{wide}} {'ranks':>5} {'loss diff':>10} {'norm diff':>10} {'bytes/rank':>12}  verdict"
        lines = [f"{self.run}: {self.steps} steps, beside one process", "", head]
        for c in self.layouts:
            norm = "-" if c.max_grad_norm_diff is None else f"{c.max_grad_norm_diff:.1e}"
            numbers = f"{c.world_size:>5} {c.max_loss_diff:>10.1e} {norm:>10} {c.bytes_per_rank:>12,}"
            lines.append(f"{c.layout:<{wide}} {numbers}  {c.verdict}")
        if self.refused:
            lines += ["", f"refused: {len(self.refused)}"]
            lines += [f"  {r.layout}: {r.reason}" for r in self.refused]
        return "\n".join(lines)


def parity(
    run: Run, *, layouts: Sequence[Parallel] | None = None, steps: int = STEPS, say: Progress = lambda _: None
) -> Parity:
    """Train `run` for a few steps at each layout, and compare with one process.

    `layouts`: none for the run's own. A layout's world is as large as the product of its degrees. Dropout is off: its
    masks are drawn by each rank, so that another number of ranks is another draw. The optimizers are `SLOWER`, with an
    eps of `EPS` at least.

    Raises:
        UserError: the run itself is not legal, or its data cannot be read.
        RunFailed: one process alone cannot train it.
    """
    if layouts is None:
        layouts = (_spelled(run.parallel, check(run).data),)
    open_data(run)
    run = steady(replace(run, cluster=replace(run.cluster, gpus_per_worker=0)), say)
    legal: list[Parallel] = []
    refused = []
    for layout in layouts:
        reason = _reason(run, layout)
        if reason:
            refused.append(Refused(name_of(layout), reason))
        else:
            legal.append(layout)
    say("one process")
    single = Parallel(data=1, dense="ddp", embeddings=run.parallel.embeddings, tables=run.parallel.tables)
    if reason := _reason(run, single):  # on CPU, where what a GPU trains may be refused
        raise ConfigError(f"parity: processes on CPU cannot train {run.name!r}: {reason}")
    (alone,) = _traces(run, 1, [single], steps)
    if isinstance(alone, str):
        raise RunFailed(f"parity: one process cannot train {run.name!r}: {alone}")
    compared: dict[str, Compared] = {}
    for world, group in groupby(sorted(legal, key=world_of), key=world_of):
        together = list(group)
        say(f"{world} processes, {len(together)} layouts")
        for layout, found in zip(together, _traces(run, world, together, steps), strict=True):
            compared[name_of(layout)] = _compare(layout, found, alone)
    return Parity(run.name, steps, tuple(compared[name_of(x)] for x in legal), tuple(refused))


def steady(run: Run, say: Progress = lambda _: None) -> Run:
    """`run` as it is compared with itself on other devices: without dropout, at rates at which rounding stays rounding.

    `say` is told what was changed.
    """
    return _slower(_without_dropout(run, say), say)


def name_of(layout: Parallel) -> str:
    """Such as `dp2 tp2 pp2 zero1 1f1b x4`: degrees above 1, what keeps replicas in step, schedule and microbatches."""
    degrees = (("dp", layout.data or 1), ("tp", layout.tensor), ("pp", layout.pipeline))
    words = [f"{short}{degree}" for short, degree in degrees if degree > 1]
    words.append(f"zero{layout.zero_stage}" if layout.dense == "zero" else "ddp")
    if layout.pipeline > 1:
        words.append(layout.schedule)
    if layout.microbatches > 1:
        words.append(f"x{layout.microbatches}")
    if layout.embeddings != "sharded":
        words.append(layout.embeddings)
    words += [f"{layout.wire} wire"] * (layout.wire != "float32")
    words += [layout.precision] * (layout.precision != "float32")
    words += [f"recompute {layout.recompute}"] * (layout.recompute != "nothing")
    words += [f"{of.table}:{of.embeddings}" for of in layout.tables]
    return " ".join(words)


def world_of(layout: Parallel) -> int:
    """Ranks of a layout whose data degree is given."""
    return (layout.data or 1) * layout.tensor * layout.pipeline


def all_layouts(run: Run, most_ranks: int) -> Iterator[Parallel]:
    """Every combination of degrees (powers of 2), wrapping and schedule of at most `most_ranks` ranks, legal or not."""
    degrees = [2**i for i in range(most_ranks.bit_length()) if 2**i <= most_ranks]
    wraps: list[dict[str, Any]] = [{"dense": "ddp"}, *({"dense": "zero", "zero_stage": s} for s in range(4))]
    blueprint = run.blueprint
    cut = degrees if len(blueprint.pieces) > 1 else [1]
    split = degrees if any(piece.cuts for piece in blueprint.pieces) else [1]
    schedules = ("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble")
    for pipeline in cut:
        for tensor in split:
            for data in degrees:
                if pipeline * tensor * data > most_ranks:
                    continue
                for wrap in wraps:
                    for schedule in schedules if pipeline > 1 else ("1f1b",):
                        for microbatches in (2 * pipeline,) if pipeline > 1 else (1, 2):
                            yield Parallel(
                                data=data,
                                tensor=tensor,
                                pipeline=pipeline,
                                schedule=schedule,  # type: ignore[arg-type]
                                microbatches=microbatches,
                                embeddings=run.parallel.embeddings,
                                tables=run.parallel.tables,
                                wire=run.parallel.wire,
                                precision=run.parallel.precision,
                                recompute=run.parallel.recompute,
                                **wrap,
                            )


def _without_dropout(run: Run, say: Progress) -> Run:
    keys = [
        key for key, value in flatten(run).items() if key.startswith("model.") and key.endswith("dropout") and value
    ]
    if keys:
        say(f"without dropout ({', '.join(keys)}): another number of ranks draws other masks")
    changed: Run = override(run, dict.fromkeys(keys, 0.0))
    return changed


def _slower(run: Run, say: Progress) -> Run:
    """At rates and eps at which rounding stays rounding."""
    settings = flatten(run)
    keys = ("optim", "sparse_optim") if run.blueprint.tables else ("optim",)
    changed = {f"{key}.lr": settings[f"{key}.lr"] * SLOWER for key in keys}
    changed |= {key: eps for key, eps in EPS.items() if key.split(".")[0] in keys and settings.get(key, eps) < eps}
    say(f"with {', '.join(f'{key} {value:g}' for key, value in changed.items())}, at which rounding stays rounding")
    slower: Run = override(run, changed)
    return slower


def _spelled(parallel: Parallel, data: int) -> Parallel:
    return replace(parallel, data=data)


def _reason(run: Run, layout: Parallel) -> str:
    """Why a layout is refused; empty when it is legal."""
    try:
        refuse(replace(run, parallel=layout), lay_out(layout, world_of(layout)))
    except ConfigError as error:
        return str(error)
    return ""


def _compare(layout: Parallel, found: Trace | str, alone: Trace) -> Compared:
    if isinstance(found, str):
        return Compared(name_of(layout), world_of(layout), float("nan"), None, 0, f"failed: {found}")
    loss = max(abs(a - b) for a, b in zip(found.losses, alone.losses, strict=True))
    norm = None
    if found.grad_norms and alone.grad_norms:
        norm = max(abs(a - b) / b for a, b in zip(found.grad_norms, alone.grad_norms, strict=True))
    most = LOSS_16_BITS if (layout.wire, layout.precision) != ("float32", "float32") else LOSS
    most_of_norm = GRAD_NORM_BFLOAT16 if layout.precision == "bfloat16" else GRAD_NORM
    equal = loss <= most and (norm is None or norm <= most_of_norm)
    verdict = "equal" if equal else "differs"
    return Compared(name_of(layout), world_of(layout), loss, norm, found.bytes_per_rank, verdict)


def _traces(run: Run, world: int, layouts: Sequence[Parallel], steps: int) -> list[Trace | str]:
    """Each layout's trace, trained one after the other in one set of processes; a failure gives its words."""
    found: list[Trace | str] = []
    while len(found) < len(layouts):
        left = tuple(layouts[len(found) :])
        with Scratch("parity") as folder:
            problem = ""
            try:
                in_world(world, _train_all, str(folder), run, left, steps, deadline_s=run.faults.hang_s * len(left))
            except RunFailed as error:  # it hangs
                problem = str(error)
            except Exception as error:  # a rank raised, or died
                problem = str(error).strip().splitlines()[-1]
            for index in range(len(left)):
                path = folder / f"{index}.json"
                if not path.is_file():
                    found.append(problem or "no answer")
                    break  # the others get new processes
                found.append(Trace(**json.loads(path.read_text())))
    return found


def _train_all(folder: str, run: Run, layouts: Sequence[Parallel], steps: int) -> None:
    """What each rank does; rank 0 leaves each trace when it has it."""
    try:
        for index, layout in enumerate(layouts):
            found = trace(replace(run, parallel=layout), steps=steps)
            if dist.get_rank() == 0:
                (Path(folder) / f"{index}.json").write_text(json.dumps(asdict(found)))
    except UserError as error:
        raise RuntimeError(str(error)) from error
