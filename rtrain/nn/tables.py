"""Embedding tables as a model declares them, and the numbers that they start from.

Light to import: configs and plans need no torchrec, which takes seconds to load (see `nn.bags`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rtrain.errors import ConfigError
from rtrain.managed import Managed
from rtrain.rounding import ceil_div
from rtrain.storage.paths import located

VECTORS = "vectors"
"""Name of the vectors of all features that have one a row, side by side, [B, V]."""

WEIGHTS = "weights"
"""Name of what tables that lie `beside` others give, side by side, [B, 4 x features]."""
BESIDE = 4
"""Dim of such a table: the least that fbgemm reads at once."""


def sequence(feature: str) -> str:
    """Name of the vectors of a feature that is read as a sequence, [B, T, E]."""
    return f"{VECTORS}.{feature}"


def mask(feature: str) -> str:
    """Name of where they are real, bool [B, T]."""
    return f"mask.{feature}"


def names_given(tables: "Sequence[Table]") -> tuple[str, ...]:
    """All names that a lookup in these tables gives; none without tables."""
    sequences = [f for table in tables for f in table.sequences]
    found = [name for f in sequences for name in (sequence(f), mask(f))]
    beside = [WEIGHTS] if any(table.beside for table in tables) else []
    return (VECTORS, *found, *beside) if tables else ()


Pooling = Literal["mean", "sum"]
Initial = Literal["uniform", "normal", "zeros"]
Kept = Literal["float32", "float16"]
"""What a weight of a table is kept as; vectors that are looked up, gradients and optimizer state are float32."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What one table has otherwise than the model's other tables."""

    table: str
    """Name of the table, as the schema's features name it."""
    dim: int | None = None
    """Embedding dim, a multiple of 4; none: `model.dim`."""
    pooling: Pooling = "mean"
    """How the vectors of a list become one; a feature that the model reads as a sequence is not pooled."""
    initial: Initial = "uniform"
    """Distribution of the first weights."""
    scale: float | None = None
    """Bound of the uniform, or standard deviation of the normal distribution; none: 1 / sqrt(rows)."""
    vectors: str = ""
    """Parquet file, or folder of such files, that some rows begin from, the others as drawn: columns `id`, the row of
    the table, and `vector`, a list of `dim` numbers. Read where a run starts anew; empty: all are drawn."""
    dtype: Kept = "float32"
    """What its weights are kept as while it is trained, in checkpoints and in the export, which is served in float32.
    An update is rounded into it: to the nearest on CPU, where one of less than half of a last bit is lost; at random on
    GPU, where it counts on average."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", located(self.vectors))
        if self.dim is not None and (self.dim < 1 or self.dim % 4):
            raise ConfigError(
                f"model.tables: table {self.table!r} needs a dim that is a multiple of 4, "
                f"which fbgemm reads at once, got {self.dim}"
            )
        if self.scale is not None and not self.scale > 0:
            raise ConfigError(f"model.tables: the scale of table {self.table!r} must be positive, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding table and the features that read it."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    sequences: tuple[str, ...] = ()
    """Those features that come out as sequences; a table that has one is looked up without pooling."""
    means: tuple[str, ...] = ()
    """Those features that come out as the mean of a row's vectors, if not as a sequence; the others as their sum."""
    weighted: tuple[str, ...] = ()
    """Those features whose ids have weights, as `schema.IdList.weights`; no table that has one has `sequences`."""
    mean_lengths: tuple[float, ...] = ()
    """Of each of `features` the ids of a row on average, which the planner counts exchanges and memory by; none: 1."""
    initial: Initial = "uniform"
    scale: float | None = None
    """Bound or standard deviation of the first weights; none: 1 / sqrt(rows), as in DLRM."""
    vectors: str = ""
    """See `TableOptions`; not for weights of `first_order`."""
    beside: bool = False
    """Whether its features have another table too, and what it gives is `WEIGHTS`."""
    dtype: Kept = "float32"
    """See `TableOptions`."""
    managed: Managed | None = None
    """How its rows are given to values; none: ids are rows."""

    @property
    def item_bytes(self) -> int:
        """Of one weight."""
        return 4 if self.dtype == "float32" else 2

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return self.rows * self.dim * self.item_bytes

    @property
    def path(self) -> str:
        """Logical name of its weights and optimizer state within `nn.bags.Tables`."""
        return f"sequences.embeddings.{self.name}" if self.sequences else f"bags.embedding_bags.{self.name}"


def first_order(table: Table) -> Table:
    """The table of its ids' first-order weights: half the sum of a row, which updates and L2 treat as one number.

    A table of its own, since an optimizer's accumulator of a row that had vector and weight together would be the
    weight's, whose gradients are many times larger, and the vector would not move.
    """
    return replace(
        table,
        name=f"{table.name}_first",
        dim=BESIDE,
        sequences=(),
        initial="zeros",
        scale=None,
        vectors="",
        beside=True,
        dtype="float32",
    )


BLOCK_ROWS = 4096


def initial_rows(table: Table, seed: int, start: int, stop: int) -> Tensor:
    """Rows start..stop-1 of a fresh table, float32 [stop - start, dim]; see `fill`."""
    rows = torch.empty(stop - start, table.dim)
    fill(rows, table, seed, row=start)
    return rows


def fill(shard: Tensor, table: Table, seed: int, *, row: int, column: int = 0) -> None:
    """Give a shard [rows, columns] on any device the first weights of its part of a fresh table.

    Drawn in blocks whose generator is seeded by (seed, table, block), so that any shard of any layout starts from the
    same numbers, and nobody holds more than a block beside it. Of a shard of some columns whole blocks are drawn. They
    are float32; a shard of 16 bits has the nearest.
    """
    scale = table.scale if table.scale is not None else table.rows**-0.5
    salt = int.from_bytes(table.name.encode()[:64], "big") % (2**31 - 1)
    stop, columns = row + shard.shape[0], slice(column, column + shard.shape[1])
    as_drawn = shard.dtype == torch.float32 and shard.device.type == "cpu"
    at_once = as_drawn and shard.is_contiguous() and shard.shape[1] == table.dim
    buffer, generator = torch.empty(BLOCK_ROWS, table.dim), torch.Generator()
    for block in range(row // BLOCK_ROWS, ceil_div(stop, BLOCK_ROWS)):
        first = block * BLOCK_ROWS
        last = min(first + BLOCK_ROWS, table.rows)
        generator.manual_seed(((seed * 1_000_003 + salt) * 1_000_003 + block) % 2**63)
        if at_once and first >= row and last <= stop:  # drawn where it belongs, not copied there
            _draw(shard[first - row : last - row], table.initial, scale, generator)
            continue
        drawn = _draw(buffer[: last - first], table.initial, scale, generator)
        begin, end = max(row, first), min(stop, last)
        shard[begin - row : end - row].copy_(drawn[begin - first : end - first, columns])


def _draw(rows: Tensor, initial: Initial, scale: float, generator: torch.Generator) -> Tensor:
    if initial == "uniform":
        return rows.uniform_(-scale, scale, generator=generator)
    return rows.normal_(0.0, scale, generator=generator) if initial == "normal" else rows.zero_()
