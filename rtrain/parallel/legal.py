"""Which layouts are refused, each with its reason; everything else trains to the losses of one process."""

from collections.abc import Iterator

from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel
from rtrain.models.decoder import Decoder
from rtrain.nn.tables import Table
from rtrain.optim import RowWiseAdagrad, SparseOptim


def refuse(
    parallel: Parallel,
    optim: SparseOptim,
    tables: tuple[Table, ...],
    *,
    world_size: int,
    model: str,
    rows_per_rank: int | None = None,
) -> None:
    """Refuse a layout whose result would differ from one process, before anything starts.

    `rows_per_rank`: of a step; none where the batch is not known.

    Raises:
        ConfigError: names the two values that do not go together, and what to set instead.
    """
    for axis in ("tensor", "pipeline"):
        if getattr(parallel, axis) > 1:
            raise ConfigError(
                f"parallel.{axis}: {getattr(parallel, axis)}, but {model} has no {axis}-parallel plan. "
                f"Set parallel.{axis} to 1; its tables are split over all workers anyway"
            )
    if rows_per_rank is not None and parallel.microbatches > rows_per_rank:
        raise ConfigError(
            f"parallel.microbatches: {parallel.microbatches}, but a step has only {rows_per_rank} rows a data rank. "
            "Lower it, or raise global_batch"
        )
    if parallel.embeddings != "column_wise":
        return
    if isinstance(optim, RowWiseAdagrad):
        raise ConfigError(
            "parallel.embeddings: column_wise with RowWiseAdagrad keeps one accumulator a column shard, which is "
            "another optimizer than on one rank. Use Adagrad, or embeddings='row_wise'"
        )
    for table in tables:
        if table.dim % (4 * world_size):
            raise ConfigError(
                f"parallel.embeddings: column_wise over {world_size} ranks needs a dim that is a multiple of "
                f"{4 * world_size}; table {table.name!r} has {table.dim}. Raise model.dim, or use 'row_wise'"
            )


ONE_STAGE_SCHEDULES = ("gpipe", "1f1b")


def refuse_dense(parallel: Parallel, mesh: Mesh, model: Decoder, *, context: int, global_batch: int) -> None:
    """Refuse a layout that a dense model cannot have, or whose result would differ from one process.

    Raises:
        ConfigError: names the numbers that do not go together, and what to set instead.
    """
    for reason in reasons_against(parallel, mesh, model, context=context, global_batch=global_batch):
        raise ConfigError(reason)


def reasons_against(
    parallel: Parallel, mesh: Mesh, model: Decoder, *, context: int, global_batch: int
) -> Iterator[str]:
    """Everything that speaks against a layout, one line each; the docs' table of illegal layouts is made from it."""
    ranks = parallel.tensor
    divided = {"model.heads": model.heads, "model.ffn": model.ffn, "model.vocab": model.vocab, "data.context": context}
    for name, size in divided.items():
        if size % ranks:
            spelled = "model.hidden (the feed-forward layer's width)" if name == "model.ffn" else name
            yield f"parallel.tensor: {ranks} does not divide {spelled}, {size}. Choose a degree that does, or change it"
    if model.kv % ranks and ranks % model.kv:
        yield (
            f"parallel.tensor: {ranks} ranks and {model.kv} key-value heads (model.kv_heads): one must divide the "
            "other, so that heads are divided or replicated evenly"
        )
    if parallel.embeddings != "sharded":
        yield f"parallel.embeddings: {parallel.embeddings!r}, but {type(model).__name__} has no sharded tables"
    if global_batch < mesh.data:
        yield (
            f"global_batch: {global_batch} sequences cannot be shared by {mesh.data} data ranks. "
            "Raise global_batch, or lower parallel.data"
        )
    per_rank = -(-global_batch // mesh.data)
    if parallel.microbatches > per_rank:
        yield (
            f"parallel.microbatches: {parallel.microbatches}, but a step has only {per_rank} sequences a data rank. "
            "Lower it, or raise global_batch"
        )
    if mesh.pipeline > 1:
        yield from _reasons_against_pipeline(parallel, mesh.pipeline, model)


def _reasons_against_pipeline(parallel: Parallel, ranks: int, model: Decoder) -> Iterator[str]:
    stages = ranks if parallel.schedule in ONE_STAGE_SCHEDULES else 2 * ranks
    if stages > model.layers:
        yield (
            f"parallel.pipeline: {ranks} ranks with schedule {parallel.schedule!r} make {stages} stages, but the model "
            f"has {model.layers} blocks. Lower parallel.pipeline, or raise model.layers"
        )
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
    if model.tied:
        yield (
            "model.tied: embedding and head lie in different pipeline stages, whose gradients nothing adds up yet. "
            "Set model.tied to false, or parallel.pipeline to 1"
        )
    if parallel.dense == "zero" and parallel.zero_stage == 3 and parallel.schedule.endswith("zero_bubble"):
        yield (
            f"parallel.zero_stage: 3 with schedule {parallel.schedule!r} takes gradients of parameters that are "
            "partitioned away by then. Use another schedule, or a lower zero_stage"
        )
