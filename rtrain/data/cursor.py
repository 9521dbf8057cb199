"""Where training stands in its data, and the arithmetic that turns that into batches.

A position is counted over all ranks together, so it means the same at any world size: a run that
stopped on 8 ranks goes on at the same sample on 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rtrain.errors import ConfigError, DataError
from rtrain.rounding import ceil_div


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The global position: how much of which epoch all ranks together have consumed."""

    epoch: int = 0
    """Epochs that are complete."""
    sample: int = 0
    """Rows consumed of the current epoch, in the epoch's own order."""

    def __post_init__(self) -> None:
        for name, value in (("epoch", self.epoch), ("sample", self.sample)):
            if type(value) is not int or value < 0:
                raise DataError(f"cursor: {name} must be an integer of at least 0, got {value!r}")

    def after(self, stop: int, rows: int) -> "Cursor":
        """The position once rows up to `stop` of this epoch's `rows` are consumed."""
        return Cursor(epoch=self.epoch, sample=stop) if stop < rows else Cursor(epoch=self.epoch + 1)

    def to_dict(self) -> dict[str, int]:
        """`{"epoch": 2, "sample": 4096}`, ready for JSON."""
        return {"epoch": self.epoch, "sample": self.sample}

    @classmethod
    def from_dict(cls, stored: Mapping[str, int]) -> "Cursor":
        """What `to_dict` gave.

        Raises:
            DataError: other keys, or values that are not integers of at least 0.
        """
        if set(stored) != {"epoch", "sample"}:
            raise DataError(f"cursor: a stored position has the keys 'epoch' and 'sample', got {sorted(stored)}")
        return cls(epoch=stored["epoch"], sample=stored["sample"])


def batches_per_epoch(rows: int, global_batch: int) -> int:
    """Global batches that an epoch of `rows` is cut into.

    Raises:
        ConfigError: `global_batch` below 1.
        DataError: no rows.
    """
    if global_batch < 1:
        raise ConfigError(f"global batch: must be at least 1 row, got {global_batch}")
    if rows < 1:
        raise DataError("the split has no rows, so it makes no batch")
    return ceil_div(rows, global_batch)


def next_bounds(cursor: Cursor, rows: int, global_batch: int) -> tuple[int, int]:
    """The next global batch as positions [start, stop) in the epoch's order.

    Batch b ends at `(b + 1) * rows // batches`: sizes differ by at most 1, are never above
    `global_batch`, and nothing is dropped. From a position that is no such boundary (the global
    batch was changed in between) what is left of the epoch is cut as evenly.

    Raises:
        ConfigError: `global_batch` below 1.
        DataError: the cursor stands behind the last row: it belongs to other data.
    """
    batches = batches_per_epoch(rows, global_batch)
    start = cursor.sample
    if start >= rows:
        raise DataError(
            f"cursor: it stands at sample {start} of an epoch that has {rows} rows, so it belongs to other data. "
            "Use the data that the run began with, or start a new run"
        )
    batch = ceil_div(start * batches, rows)
    if batch * rows // batches == start:
        return start, (batch + 1) * rows // batches
    left = rows - start
    return start, start + left // ceil_div(left, global_batch)


def check_batches(rows: int, global_batch: int, rank: int, world_size: int, *, least: int = 1) -> None:
    """Refuse a split whose smallest batch has less than `least` rows for each data rank.

    Raises:
        ConfigError: that, or a rank outside the world.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"data rank {rank} is not one of 0..{world_size - 1}")
    batches = batches_per_epoch(rows, global_batch)
    smallest = rows // batches
    if smallest < least * world_size:
        raise ConfigError(
            f"global_batch {global_batch}: {rows} rows make {batches} batches of at least {smallest}, too few for "
            f"{world_size} data ranks{', which take two rows each at least' * (least > 1)}. "
            "Raise the global batch, or use fewer workers"
        )


UNEVEN = 5
"""Rows that a share may have above an even one, where ranks are no power of two and data are read in strata."""


def largest_share(rows: int, ranks: int) -> int:
    """Rows that no rank's share of a global batch of `rows` has more of (`rtrain.data.order.Order.share`)."""
    even = ceil_div(rows, ranks)
    return even if ranks & (ranks - 1) == 0 else min(rows, even + UNEVEN)
