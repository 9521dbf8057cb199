"""Which layouts are refused, each with its reason; everything else trains to the losses of one process."""

from rtrain.errors import ConfigError
from rtrain.mesh import Parallel
from rtrain.nn.tables import Table
from rtrain.optim import RowWiseAdagrad, SparseOptim


def refuse(parallel: Parallel, optim: SparseOptim, tables: tuple[Table, ...], *, world_size: int, model: str) -> None:
    """Refuse a layout whose result would differ from one process, before anything starts.

    Raises:
        ConfigError: names the two values that do not go together, and what to set instead.
    """
    for axis in ("tensor", "pipeline"):
        if getattr(parallel, axis) > 1:
            raise ConfigError(
                f"parallel.{axis}: {getattr(parallel, axis)}, but {model} has no {axis}-parallel plan. "
                f"Set parallel.{axis} to 1; its tables are split over all workers anyway"
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
