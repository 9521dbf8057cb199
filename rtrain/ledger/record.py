"""The sample ledger: which samples the committed steps consumed, epoch by epoch, written with each checkpoint.

What is recorded are the numbers in the very batches that a step was taken with (`Batch.row`), not what
the cursor says should have been read; so the proof is one of the reader, the cursor, the resume and the
sharing out over ranks. A rank keeps what it has consumed since the last checkpoint; at a checkpoint rank
0 adds it all up and writes the whole with the model. So a resume goes on with the ledger of the
checkpoint that it goes on from, and steps that were lost with a failure are in none.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from rtrain.checkpoint.format import Stored
from rtrain.ledger.samples import Samples
from rtrain.parallel.chunks import Chunk, whole

Kind = Literal["consumed", "skipped"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PENDING = 1 << 20
"""Samples that a rank keeps as plain numbers before it folds them into a bitmap."""
PREFIX = "ledger."


class Ledger:
    """What this rank's steps consumed since the last checkpoint; on rank 0 also all before, of all ranks."""

    def __init__(self, *, counts: bool = True):
        self.counts = counts
        """Whether this rank's batches are its own: of ranks that share a model replica only one counts."""
        self.since_step = 0
        """The first step of the record: above 0 when the run began with a version that kept none."""
        self.total: dict[Kind, dict[int, Samples]] = {kind: {} for kind in KINDS}
        self._pending: dict[tuple[Kind, int], list[NDArray[np.int64]]] = {}
        self._pending_samples = 0
        self._folded: dict[tuple[Kind, int], Samples] = {}

    def record(self, epoch: int, row: Tensor, *, kind: Kind = "consumed") -> None:
        """A step was taken with the samples `row`, int64 [B] on the CPU; -1 pads and is left out."""
        if not self.counts:
            return
        numbers = row.numpy()
        self._pending.setdefault((kind, epoch), []).append(numbers)
        self._pending_samples += len(numbers)
        if self._pending_samples >= PENDING:
            self._fold()

    def _fold(self) -> None:
        for key, parts in self._pending.items():
            numbers = np.concatenate(parts)
            self._folded.setdefault(key, Samples()).add(numbers[numbers >= 0])
        self._pending.clear()
        self._pending_samples = 0

    def gather(self, group: dist.ProcessGroup | None = None) -> None:
        """Add what all ranks recorded to rank 0's total; a collective over all ranks."""
        self._fold()
        local = [(key, samples.to_bytes(), samples.digest) for key, samples in self._folded.items()]
        self._folded = {}
        shares: list[Any] = [local]
        if dist.get_world_size(group) > 1:
            shares = [None] * dist.get_world_size(group)
            dist.all_gather_object(shares, local, group=group)
        if dist.get_rank(group) == 0:
            for (kind, epoch), levels, digest in (part for share in shares for part in share):
                self.total[kind].setdefault(epoch, Samples()).merge(Samples.from_bytes(levels, digest))

    def chunks(self) -> Iterator[Chunk]:
        """The total as bytes, for a checkpoint; rank 0's to write."""
        for kind, epochs in self.total.items():
            for epoch, samples in epochs.items():
                for level, data in enumerate(samples.to_bytes()):
                    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                    yield whole(f"{PREFIX}{kind}.{epoch:05d}.{level}", content)

    def to_json(self) -> dict[str, Any]:
        """Counts and hashes, for a checkpoint's manifest."""
        return {
            "since_step": self.since_step,
            **{
                kind: {
                    str(epoch): {"count": s.count, "levels": s.levels, "hash": f"{s.digest:032x}"}
                    for epoch, s in epochs.items()
                }
                for kind, epochs in self.total.items()
            },
        }

    def load(self, stored: Stored) -> None:
        """Go on from a checkpoint's ledger; on rank 0. What was recorded since it was made is forgotten."""
        self._pending, self._pending_samples, self._folded = {}, 0, {}
        self.total, self.since_step = read(stored)


def read(stored: Stored) -> tuple[dict[Kind, dict[int, Samples]], int]:
    """A checkpoint's ledger, and the step that it begins at.

    Raises:
        CheckpointError: a ledger that does not fit what the manifest says of it.
    """
    entry = stored.meta.get("ledger")
    if entry is None:
        return {kind: {} for kind in KINDS}, stored.step
    total: dict[Kind, dict[int, Samples]] = {}
    for kind in KINDS:
        total[kind] = {}
        for epoch, of in entry[kind].items():
            names = [f"{PREFIX}{kind}.{int(epoch):05d}.{level}" for level in range(of["levels"])]
            levels = [stored.tensor(name).numpy().tobytes() for name in names]
            total[kind][int(epoch)] = Samples.from_bytes(levels, int(of["hash"], 16))
    return total, entry["since_step"]
