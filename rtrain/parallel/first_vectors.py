"""First weights of a table's rows out of Parquet: each rank reads those of its own shards, and holds a batch of them.

A file has the columns `id`, a row of the table, and `vector`, a list of its `dim` numbers. Rows that it does not name
keep the weights that they have. A row group whose statistics say that it has none of a rank's rows is not read.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from rtrain.data.parquet import ParquetRows
from rtrain.errors import DataError, one_line
from rtrain.nn.tables import Table
from rtrain.parallel.chunks import Chunk

ID, VECTOR = "id", "vector"
BATCH_ROWS = 8192
"""Rows that are held at once."""


def check_vectors(tables: Iterable[Table]) -> None:
    """Look at the files' footers, before any worker starts; the vectors themselves are looked at as they are read.

    Raises:
        DataError: no such file, other columns, or ids that the table does not have.
    """
    for table in tables:
        if table.vectors:
            FirstVectors(table)


def read_vectors(tables: Iterable[Table], weights: Iterable[tuple[Table, Chunk]]) -> None:
    """Fill the rows of this rank's shards that the tables' files name; a collective, where a table has a file.

    `tables`: all, the same on every rank.

    Raises:
        DataError: what some rank cannot use, on every rank, lest the others wait for it.
    """
    if not any(table.vectors for table in tables):
        return
    problem = ""
    try:
        for table, chunk in weights:
            if table.vectors:
                FirstVectors(table).read_into(chunk)
    except Exception as error:  # whatever the storage raises
        problem = one_line(error)
    problems = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found:
            raise DataError(found)


class FirstVectors:
    """The file, or folder of files, of one table.

    Raises:
        DataError: as `check_vectors`.
    """

    def __init__(self, table: Table):
        self.table = table
        self.where = f"{table.vectors}: vectors of table {table.name!r}"
        self.stored = ParquetRows(table.vectors, field=f"vectors of table {table.name!r}")
        self._check_columns()
        self.spans = self.stored.spans(ID)
        for span in self.spans or ():
            self._refuse_outside(np.array(span))

    def read_into(self, chunk: Chunk) -> None:
        """Put the vectors of a shard's rows into it; of a shard of some columns, those columns of them.

        Raises:
            DataError: an id or a number that is missing, an id that the table does not have or that is there twice, a
                vector of another width, or one with a number that is not finite.
        """
        first, column = chunk.offsets
        rows, columns = chunk.data.shape
        seen = np.zeros(rows, bool)
        for number, group in enumerate(self.stored.row_groups):
            if self.spans and (self.spans[number][1] < first or self.spans[number][0] >= first + rows):
                continue
            for batch in self.stored.batches(group, (ID, VECTOR), BATCH_ROWS):
                ids, vectors = self._plain(batch)
                mine = (ids >= first) & (ids < first + rows)
                at = ids[mine] - first
                ordered = np.sort(at)
                twice = np.concatenate([at[seen[at]], ordered[1:][ordered[1:] == ordered[:-1]]])
                if twice.size:
                    raise DataError(f"{self.where}: id {twice[0] + first} is there twice. Keep one of its vectors")
                seen[at] = True
                given = torch.from_numpy(vectors[mine][:, column : column + columns]).to(chunk.data)
                if not (fine := given.isfinite().all(1)).all():
                    bad = ids[mine][int(fine.int().argmin())]
                    raise DataError(
                        f"{self.where}: the vector of id {bad} has a number that {self.table.dtype} cannot hold. Give "
                        "the table dtype 'float32', or scale the vectors"
                    )
                chunk.data[torch.from_numpy(at).to(chunk.data.device)] = given

    def _check_columns(self) -> None:
        for name, wanted in ((ID, "whole numbers, rows of the table"), (VECTOR, f"lists of {self.table.dim} numbers")):
            if name not in self.stored.schema.names:
                has = ", ".join(self.stored.schema.names)
                raise DataError(f"{self.where}: column {name!r} is missing, {wanted}. The columns are {has}")
        of_id, of_vector = self.stored.schema.field(ID).type, self.stored.schema.field(VECTOR).type
        if not pa.types.is_integer(of_id):
            raise DataError(f"{self.where}: column {ID!r} is {of_id}, but must be whole numbers, rows of the table")
        types = pa.types
        is_fixed = types.is_fixed_size_list(of_vector)
        is_list = is_fixed or types.is_list(of_vector) or types.is_large_list(of_vector)
        if not is_list or not (types.is_floating(of_vector.value_type) or types.is_integer(of_vector.value_type)):
            raise DataError(f"{self.where}: column {VECTOR!r} is {of_vector}, but must be lists of numbers")
        if is_fixed:
            self._refuse_width(of_vector.list_size)

    def _plain(self, batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids [N] and vectors [N, dim], looked at."""
        column, lists = batch.column(ID), batch.column(VECTOR)
        for name, values in ((ID, column), (VECTOR, lists)):
            if values.null_count:
                raise DataError(f"{self.where}: {name} is null in {values.null_count} rows. Fill it, or drop them")
        ids: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
        self._refuse_outside(ids)
        for width in np.unique(pc.list_value_length(lists).to_numpy(zero_copy_only=False)):
            self._refuse_width(int(width))
        flat = pc.list_flatten(lists).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        vectors = flat.reshape(-1, self.table.dim)
        if not (fine := np.isfinite(vectors).all(1)).all():
            bad = ids[fine.argmin()]
            raise DataError(
                f"{self.where}: the vector of id {bad} has a number that is missing or not finite. Mend it, or drop it"
            )
        return ids, vectors

    def _refuse_outside(self, ids: NDArray[np.int64]) -> None:
        if (outside := ids[(ids < 0) | (ids >= self.table.rows)]).size:
            raise DataError(
                f"{self.where}: id {outside[0]}, but the table has rows={self.table.rows} (valid 0.."
                f"{self.table.rows - 1}). Drop it, or give the table more rows"
            )

    def _refuse_width(self, width: int) -> None:
        if width != self.table.dim:
            raise DataError(
                f"{self.where}: a vector has {width} numbers, but the table has dim {self.table.dim}. Set the table's "
                f"dim to {width} (a multiple of 4), or make vectors of {self.table.dim}"
            )
