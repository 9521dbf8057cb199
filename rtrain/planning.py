"""`plan`: what a run will look like, worked out by arithmetic; no worker starts, no accelerator is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from rtrain import notices
from rtrain.config import validate
from rtrain.data.protocol import NotCounted
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, lay_out
from rtrain.models.protocol import Blueprint
from rtrain.nn.tables import Table
from rtrain.parallel.activations import Kept, kept_of_ranks
from rtrain.parallel.legal import reasons_against_degrees
from rtrain.parallel.placement import TablePlacement, bytes_per_rank, copied_bytes, left_for_tables, total_bytes
from rtrain.parallel.stage import parameters_of_ranks
from rtrain.rounding import ceil_div
from rtrain.run import Run
from rtrain.training.agreement import refuse

ASSUMED_GPU_BYTES = 80 * 1024**3
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Plan:
    """The layout of a run."""

    run: str
    mesh: Mesh
    tables: tuple[TablePlacement, ...]
    bytes_per_rank: tuple[dict[str, int], ...]
    """For each rank: parameters, gradients, optimizer (dense), tables, tables_optimizer; on CPU checkpoint, the copy
    that is written behind training; and activations if counted."""
    memory_per_rank: int
    memory_from: str
    """Where the memory figure comes from."""
    not_counted: str = ""
    """Why activations are not counted; empty: they are."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {
            "run": self.run,
            "world_size": self.mesh.world_size,
            "axes": asdict(self.mesh),
            "ranks": [{"rank": r, "coordinates": self.mesh.coordinates(r)} for r in range(self.mesh.world_size)],
            "tables": [t.to_json() for t in self.tables],
            "bytes_per_rank": list(self.bytes_per_rank),
            "memory_per_rank": self.memory_per_rank,
            "memory_from": self.memory_from,
            "activations_not_counted": self.not_counted,
        }

    def __str__(self) -> str:
        mesh = self.mesh
        lines = [
            f"{self.run}: {mesh.world_size} ranks = pipeline {mesh.pipeline} x data {mesh.data} x tensor {mesh.tensor}",
            "",
            f"{'table':<16} {'rows':>12} {'dim':>5} {'bytes':>10}  {'sharding':<12} rows per rank",
        ]
        for table in self.tables:
            where = ", ".join(f"{s.rank}: {s.sizes[0]}x{s.sizes[1]}" for s in table.shards[:8])
            more = f", ... {len(table.shards)} shards" if len(table.shards) > 8 else ""
            size = _spell(table.bytes)
            lines.append(
                f"{table.table:<16} {table.rows:>12,} {table.dim:>5} {size:>10}  {table.sharding:<12} {where}{more}"
            )
        kinds = [kind for kind in self.bytes_per_rank[0] if kind != "rank"]
        lines += ["", f"{'bytes':<8}" + "".join(f"{k:>18}" for k in kinds) + f"{'total':>12}"]
        for row in self.bytes_per_rank:
            values = [row[k] for k in kinds]
            spelled = "".join(f"{_spell(v):>18}" for v in values)
            lines.append(f"rank {row['rank']:<3}{spelled}{_spell(sum(values)):>12}")
        lines += ["", f"memory per rank: {_spell(self.memory_per_rank)} ({self.memory_from})"]
        if self.not_counted:
            lines.append(f"activations not counted: {self.not_counted}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _spell(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def check(run: Run) -> Mesh:
    """Refuse, at once, a run that no memory and no machine would make legal; how its ranks are laid out.

    Raises:
        ConfigError: a wrong type, degrees that do not divide, a combination that is refused.
    """
    validate(run)
    mesh = lay_out(run.parallel, run.cluster.workers)
    refuse(run, mesh)
    return mesh


@notices.aside()
def plan(run: Run) -> Plan:
    """Check a run and lay it out.

    Raises:
        ConfigError: what `check` refuses, and tables that do not fit.
        DataError: a local source that is not there.
    """
    mesh = check(run)
    run.data.check_source()
    memory, source = _memory(run)
    blueprint = run.blueprint
    sizes = parameters_of_ranks(blueprint.pieces, run.parallel, mesh)
    kept, why_not = _kept(run, blueprint, mesh)
    beside = [of_rank.beside_tables for of_rank in kept] or [0] * mesh.world_size
    left = left_for_tables(memory, run.parallel, run.sparse_optim, mesh, dense_parameters=sizes, activations=beside)

    def counted(placed: tuple[TablePlacement, ...]) -> list[dict[str, int]]:
        rows = bytes_per_rank(run.parallel, run.sparse_optim, placed, mesh, dense_parameters=sizes)
        if run.checkpoint.background and not run.cluster.gpus_per_worker:  # else it is no memory of the device's
            copied = copied_bytes(run.sparse_optim, placed, mesh, dense_parameters=sizes)
            rows = [row | {"checkpoint": count} for row, count in zip(rows, copied, strict=True)]
        totals = [{"activations": of_rank.total} for of_rank in kept] or [{}] * mesh.world_size
        return [row | total for row, total in zip(rows, totals, strict=True)]

    again = replace(run.parallel, recompute="pieces")
    known: dict[str, Any] = {"global_batch": run.global_batch, "model": type(run.model).__name__}
    spares = again != run.parallel and not any(reasons_against_degrees(again, mesh, blueprint, **known))
    if not left:  # the dense part and its step fill a rank: no tables are to blame
        _refuse_what_does_not_fit(counted(()), memory, source, why_not, spares)
    placed = _place_tables(run, blueprint.tables, mesh, left, activations=max(beside)) if blueprint.tables else ()
    per_rank = counted(placed)
    _refuse_what_does_not_fit(per_rank, memory, source, why_not, spares)
    return Plan(run.name, mesh, placed, tuple(per_rank), memory, source, why_not)


def _kept(run: Run, blueprint: Blueprint, mesh: Mesh) -> tuple[list[Kept], str]:
    """What each rank keeps during a step, or nothing and why that is not counted."""
    try:
        return kept_of_ranks(blueprint, run.parallel, mesh, global_batch=run.global_batch, blank=run.data.blank), ""
    except NotCounted as error:
        return [], str(error)


def _refuse_what_does_not_fit(
    per_rank: Sequence[Mapping[str, int]], memory: int, source: str, why_not: str, spares: bool
) -> None:
    """`spares`: whether recomputing would be another layout, and legal."""
    most = max(per_rank, key=total_bytes)
    if total_bytes(most) <= memory:
        return
    parts = ", ".join(f"{kind} {_spell(count)}" for kind, count in most.items() if kind != "rank" and count)
    left_out = ", activations not counted" if why_not else ""
    smaller = "lower global_batch or raise parallel.microbatches, " if most.get("activations") else ""
    smaller += "set parallel.recompute to 'pieces', " if most.get("activations") and spares else ""
    raise ConfigError(
        f"rank {most['rank']} would hold {_spell(total_bytes(most))} ({parts}){left_out}, but has "
        f"{_spell(memory)} ({source}). Cut the dense part further (parallel.dense zero with zero_stage 3, "
        f"parallel.tensor or parallel.pipeline), {smaller}add workers (cluster.workers), or make the model smaller"
    )


def _place_tables(
    run: Run, tables: tuple[Table, ...], mesh: Mesh, memory: int, *, activations: int
) -> tuple[TablePlacement, ...]:
    # torchrec, seconds to import: whoever starts Ray does this meanwhile.
    from rtrain.parallel.table_planning import placements, plan_tables

    on_gpu = bool(run.cluster.gpus_per_worker)
    sharding = plan_tables(
        tables,
        run.parallel,
        run.sparse_optim,
        world_size=mesh.world_size,
        local_world_size=_local_world_size(run) if on_gpu else mesh.world_size,
        device="cuda" if on_gpu else "cpu",
        batch_per_rank=ceil_div(run.global_batch, mesh.world_size),
        memory_bytes_per_rank=memory,
        activations_bytes=activations,
        memory_from=f"{_spell(_memory(run)[0])}, {_memory(run)[1]}",
    )
    return placements(sharding, tables)


def _local_world_size(run: Run) -> int:
    workers = run.cluster.workers
    return next(n for n in range(min(workers, GPUS_PER_NODE), 0, -1) if workers % n == 0)


def _memory(run: Run) -> tuple[int, str]:
    given = run.cluster.memory_gb_per_worker
    if given is not None:
        return int(given * 1024**3), "cluster.memory_gb_per_worker"
    if run.cluster.gpus_per_worker:
        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(0).total_memory, "this machine's GPU"
        return ASSUMED_GPU_BYTES, "assumed GPU; set cluster.memory_gb_per_worker to yours"
    total = int(psutil.virtual_memory().total)
    shared = f"this machine's memory shared by {run.cluster.workers} workers"
    return total // run.cluster.workers, f"{shared}; set cluster.memory_gb_per_worker to that of others"
