"""Which layouts and dtypes of embedding tables are refused, each with its reason."""

from collections.abc import Iterator

from rtrain.mesh import Parallel
from rtrain.nn.tables import Table
from rtrain.optim import Adam, RowWiseAdagrad, SparseOptim


def reasons_against_tables(
    parallel: Parallel, optim: SparseOptim, tables: tuple[Table, ...], world_size: int, *, on_gpu: bool
) -> Iterator[str]:
    """Everything that speaks against how tables are split and kept, one line each."""
    yield from _against_columns(parallel, optim, tables, world_size)
    for table in tables:
        how = parallel.embeddings_of(table.name)
        if table.sequences and how in ("table_row_wise", "data_parallel"):
            yield (
                f"{_where(parallel, table)}: TorchRec has {how} of tables alone whose vectors are summed, but "
                f"{table.sequences[0]!r} is read as a sequence from table {table.name!r}. Use 'row_wise'"
            )
        if table.dtype != "float32" and how == "data_parallel":
            yield (
                f"model.tables: table {table.name!r} is {table.dtype}, but data_parallel, whose gradient has the "
                "weights' dtype, and would be rounded to 16 bits. Split it, or use dtype 'float32'"
            )
    yield from _against_sixteen_bits(optim, tables, on_gpu=on_gpu)
    yield from _against_unified_memory(parallel, optim, on_gpu=on_gpu)
    yield from _against_managed(parallel, tables)
    if parallel.wire == "bfloat16" and not on_gpu:
        yield (
            "parallel.wire: 'bfloat16' is not what TorchRec sends over gloo, on CPU. Use 'float16', or GPUs "
            "(cluster.gpus_per_worker 1)"
        )


def _against_columns(
    parallel: Parallel, optim: SparseOptim, tables: tuple[Table, ...], world_size: int
) -> Iterator[str]:
    cut = [table for table in tables if parallel.embeddings_of(table.name) == "column_wise"]
    if cut and isinstance(optim, RowWiseAdagrad):
        yield (
            f"{_where(parallel, cut[0])}: column_wise with RowWiseAdagrad keeps one accumulator a column shard, which "
            "is another optimizer than on one rank. Use Adagrad, or embeddings='row_wise'"
        )
    for table in cut:
        if table.dim % (4 * world_size) and not table.beside:
            yield (
                f"{_where(parallel, table)}: column_wise over {world_size} ranks needs a dim that is a multiple of "
                f"{4 * world_size}; table {table.name!r} has {table.dim}. Raise model.dim, or use 'row_wise'"
            )


def _where(parallel: Parallel, table: Table) -> str:
    """The field that says how a table is split."""
    return "parallel.tables" if table.name in [of.table for of in parallel.tables] else "parallel.embeddings"


def _against_sixteen_bits(optim: SparseOptim, tables: tuple[Table, ...], *, on_gpu: bool) -> Iterator[str]:
    for table in tables:
        if table.dtype == "float32":
            continue
        here = f"model.tables: table {table.name!r} is {table.dtype}"
        if isinstance(optim, Adam):
            yield (
                f"{here}, but Adam takes gradients from where the weights lie, where they would be rounded to 16 bits. "
                "Use RowWiseAdagrad, Adagrad or SGD, or dtype 'float32'"
            )
        elif optim.l2:
            yield (
                f"{here}, but what sparse_optim.l2 ({optim.l2:g}) takes off a weight in a step is less than a last bit "
                "of 16 and would be rounded away. Set it to 0, or use dtype 'float32'"
            )


def _against_unified_memory(parallel: Parallel, optim: SparseOptim, *, on_gpu: bool) -> Iterator[str]:
    for of in parallel.tables:
        here = f"parallel.tables: table {of.table!r} has kernel {of.kernel!r}"
        if of.kernel == "fused":
            continue
        if not on_gpu:
            yield f"{here}, but on CPU all memory is the host's. Use 'fused', or GPUs (cluster.gpus_per_worker 1)"
        if of.embeddings == "data_parallel":
            yield f"{here}, which no data_parallel table can have. Split it, or use 'fused'"
        if isinstance(optim, Adam) or optim.l2:
            what = "Adam" if isinstance(optim, Adam) else f"sparse_optim.l2 ({optim.l2:g})"
            yield (
                f"{here}, but {what} changes weights where they lie, which may not be those in the GPU's cache. "
                "Use 'fused', or RowWiseAdagrad, Adagrad or SGD without l2"
            )


def _against_managed(parallel: Parallel, tables: tuple[Table, ...]) -> Iterator[str]:
    for table in tables:
        if not table.managed:
            continue
        here = f"table {table.name!r} is managed"
        if parallel.embeddings_of(table.name) == "data_parallel":
            yield f"{_where(parallel, table)}: {here}, which no data_parallel table can be. Split it"
        if parallel.layout_of(table.name).kernel != "fused":
            kernel = parallel.layout_of(table.name).kernel
            yield (
                f"parallel.tables: {here}, and rows that begin again are written where the weights lie, which with "
                f"kernel {kernel!r} may not be those in the GPU's cache. Use 'fused'"
            )
        if table.vectors:
            yield f"model.tables: {here}, so that no row is an id's beforehand, but it has vectors. Leave them out"
