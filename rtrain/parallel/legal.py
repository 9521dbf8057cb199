"""Which layouts are refused, each with its reason; everything else trains to the losses of one process."""

from collections.abc import Iterator

from rtrain.errors import ConfigError, did_you_mean
from rtrain.mesh import ONE_STAGE_A_RANK, Mesh, Parallel
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.optim import SparseOptim
from rtrain.parallel.legal_tables import reasons_against_tables
from rtrain.parallel.stage import shaped, shapes
from rtrain.rounding import ceil_div


def refuse(
    parallel: Parallel,
    mesh: Mesh,
    blueprint: Blueprint,
    optim: SparseOptim,
    *,
    on_gpu: bool,
    global_batch: int,
    model: str,
) -> None:
    """Refuse a layout that the model cannot have, or whose result would differ from one process.

    `on_gpu`: whether each rank has one; `model`: its name, for the message.

    Raises:
        ConfigError: names the numbers that do not go together, and what to set instead.
    """
    for reason in reasons_against(
        parallel, mesh, blueprint, optim, on_gpu=on_gpu, global_batch=global_batch, model=model
    ):
        raise ConfigError(reason)


def reasons_against(
    parallel: Parallel,
    mesh: Mesh,
    blueprint: Blueprint,
    optim: SparseOptim,
    *,
    on_gpu: bool,
    global_batch: int,
    model: str,
) -> Iterator[str]:
    """Everything that speaks against a layout, one line each."""
    can = {"tensor": any(piece.cuts for piece in blueprint.pieces), "pipeline": len(blueprint.pieces) > 1}
    for axis, possible in can.items():
        degree = getattr(parallel, axis)
        if degree > 1 and not possible:
            anyway = "; its tables are split over all workers anyway" if blueprint.tables else ""
            yield (
                f"parallel.{axis}: {degree}, but {model} has no {axis}-parallel plan. Set parallel.{axis} to 1{anyway}"
            )
    yield from blueprint.against(parallel, mesh)
    if mesh.tensor > 1:
        for piece in blueprint.pieces:
            yield from _against_cuts(piece, mesh.tensor, model)
    if blueprint.tables:
        yield from reasons_against_tables(parallel, optim, blueprint.tables, mesh.world_size, on_gpu=on_gpu)
        if optim.clip_with_dense and not any(map(shapes, blueprint.pieces)):
            yield f"sparse_optim.clip_with_dense: {model} has no dense weights whose norm would clip. Leave it out"
        yield from _against_carrying(parallel, mesh, blueprint, model)
    elif parallel.embeddings != "sharded":
        yield f"parallel.embeddings: {parallel.embeddings!r}, but {model} has no sharded tables"
    elif parallel.wire != "float32":
        yield f"parallel.wire: {parallel.wire!r}, but {model} has no sharded tables whose vectors would travel"
    if parallel.precision != "float32" and not any(map(shapes, blueprint.pieces)):
        yield f"parallel.precision: {parallel.precision!r}, but {model} has no dense weights. Leave it out"
    if parallel.precision == "tf32" and not on_gpu:
        yield "parallel.precision: 'tf32' is of NVIDIA's GPUs (cluster.gpus_per_worker 1). Use 'bfloat16' or 'float32'"
    names = [table.name for table in blueprint.tables]
    for of in parallel.tables:
        if of.table not in names:
            near = did_you_mean(of.table, names) or f". It has {', '.join(names) or 'none'}"
            yield f"parallel.tables: {model} has no table {of.table!r}{near}"
    yield from reasons_against_degrees(parallel, mesh, blueprint, global_batch=global_batch, model=model)


def reasons_against_degrees(
    parallel: Parallel, mesh: Mesh, blueprint: Blueprint, *, global_batch: int, model: str
) -> Iterator[str]:
    """What numbers alone speak against, without a look at a piece: rows, microbatches, stages, one piece alone."""
    if parallel.recompute == "pieces":
        yield from _against_recomputing(parallel, mesh, len(blueprint.pieces), model)
    readers = mesh.readers(blueprint.dealt)
    if global_batch < readers:
        yield (
            f"global_batch: {global_batch} rows cannot be shared by {readers} ranks. "
            "Raise global_batch, or lower parallel.data"
        )
    per_rank = ceil_div(global_batch, readers)
    if parallel.microbatches > per_rank:
        yield (
            f"parallel.microbatches: {parallel.microbatches}, but a step has only {per_rank} rows a rank. "
            "Lower it, or raise global_batch"
        )
    if mesh.pipeline > 1:
        yield from _against_pipeline(parallel, mesh.pipeline)
        stages = mesh.pipeline * (1 if parallel.schedule in ONE_STAGE_A_RANK else 2)
        if 1 < len(blueprint.pieces) < stages:
            yield (
                f"parallel.pipeline: {mesh.pipeline} ranks with schedule {parallel.schedule!r} make {stages} stages, "
                f"but {model} has {len(blueprint.pieces)} pieces. Lower parallel.pipeline, or give it more layers"
            )


def _against_cuts(piece: Piece, ranks: int, model: str) -> Iterator[str]:
    """A name that the piece does not have would leave a weight whole or a sum undone: another model, without a word."""
    module, here = shaped(piece), f"model {model}: its piece {piece.name!r}"
    weights = dict(module.named_parameters(remove_duplicate=False))
    for name, cut in piece.cuts.items():
        if name not in weights:
            near = did_you_mean(name, weights) or f". It has {', '.join(weights) or 'none'}"
            yield f"{here} cuts {name!r}, a weight that it does not have{near}"
            continue
        dim = piece.cut_dim(name, ranks)
        if dim is not None and weights[name].shape[dim] % ranks:
            size = weights[name].shape[dim]
            yield (
                f"parallel.tensor: {ranks} does not divide dim {dim} of {piece.name}.{name}, {size}, which is cut by "
                f"{cut!r}. Choose a degree that does"
            )
    modules = dict(module.named_modules())
    for field in ("kv", "enter", "leave", "norms"):
        for name in getattr(piece, field):
            if name not in modules:
                near = did_you_mean(name, modules) or f". It has {', '.join(n for n in modules if n) or 'none'}"
                yield f"{here} names {name!r} in {field}, a module that it does not have{near}"
    if piece.leave and not {"row", "vocab"} & set(piece.cuts.values()):
        yield (
            f"{here} sums what {piece.leave[0]!r} gives over the tensor ranks, but no weight of it is cut by 'row' or "
            "'vocab': the sum would be of whole outputs. Cut one, or leave `leave` out"
        )


def _against_carrying(parallel: Parallel, mesh: Mesh, blueprint: Blueprint, model: str) -> Iterator[str]:
    """Vectors of tables go to the stages that take them, and their gradients back."""
    if mesh.tensor * mesh.pipeline == 1:
        return
    if blueprint.dealt != "rows":
        yield f"parallel.tensor and pipeline: {model} has tables, whose rows are dealt to tensor ranks, not its tokens"
    for feature in (f for table in blueprint.tables for f in table.sequences if f not in blueprint.longest):
        yield (
            f"parallel: {model} reads {feature!r} as a sequence of any length, which tensor and pipeline ranks cannot "
            "agree on. Give the feature a max_length, or set parallel.tensor and parallel.pipeline to 1"
        )


def _against_recomputing(parallel: Parallel, mesh: Mesh, pieces: int, model: str) -> Iterator[str]:
    if pieces < 2:
        yield (
            f"parallel.recompute: 'pieces', but {model} has {pieces or 'no'} piece{'s' * (not pieces)}, and backward "
            "needs the activations of the last one at once: nothing would be saved. Leave it out"
        )
    if mesh.pipeline > 1 and parallel.schedule.endswith("zero_bubble"):
        yield (
            f"parallel.recompute: 'pieces' with schedule {parallel.schedule!r}, which parts the backward pass, would "
            "do the forward pass again for every part of it. Use 'interleaved_1f1b' or '1f1b', or recompute 'nothing'"
        )


def _against_pipeline(parallel: Parallel, ranks: int) -> Iterator[str]:
    if parallel.microbatches < ranks:
        yield (
            f"parallel.microbatches: schedule {parallel.schedule!r} over {ranks} pipeline ranks needs at least {ranks} "
            f"microbatches, got {parallel.microbatches}. Raise it, with global_batch if need be"
        )
    elif parallel.schedule.startswith("interleaved") and parallel.microbatches % ranks:
        yield (
            f"parallel.microbatches: {parallel.schedule!r} needs a multiple of the {ranks} pipeline ranks, got "
            f"{parallel.microbatches}"
        )
    if parallel.dense == "zero" and parallel.zero_stage == 3 and parallel.schedule.endswith("zero_bubble"):
        yield (
            f"parallel.zero_stage: 3 with schedule {parallel.schedule!r} takes gradients of parameters that are "
            "partitioned away by then. Use another schedule, or a lower zero_stage"
        )
