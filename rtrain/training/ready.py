"""Batches are on the device before a step wants them.

On a GPU whoever makes a batch, as a rule the reader's thread, sends it there as well: out of pinned memory, on a stream
of its own, so that neither the thread of the steps nor the step that computes meanwhile waits. The stream of the steps
waits for that copy alone. A batch that was sent is not yet read: who takes it has its position, as that of any other.
On a CPU a batch is ready as it is made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rtrain.batch import copied, each
from rtrain.data.protocol import AnyBatch


@dataclass(frozen=True)
class Sent:
    """A batch under way to a GPU."""

    host: AnyBatch
    there: AnyBatch
    """Of memory that nothing is in before `done`."""
    done: torch.cuda.Event


Given = AnyBatch | Sent
"""What a reader hands out."""


class Copies:
    """Sends batches to a device; what `Samples.reader` calls `ready`."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: AnyBatch) -> Given:
        """In the thread that made the batch; of a CPU the batch itself."""
        if self._stream is None:
            return batch
        # The thread's own device may be another one. A pinned tensor may be dropped: torch keeps its memory until the
        # copy is done.
        with torch.cuda.stream(self._stream):
            there = copied(each(batch, Tensor.pin_memory), self.device)
            return Sent(host=batch, there=there, done=self._stream.record_event())


def arrived(given: Given, device: torch.device) -> tuple[AnyBatch, AnyBatch]:
    """A batch as the host has it, and on the device, for the stream that is current; whether it was sent or not."""
    if not isinstance(given, Sent):
        return given, given.to(device)
    stream = torch.cuda.current_stream(device)
    stream.wait_event(given.done)

    def used(tensor: Tensor) -> Tensor:
        """Its memory belongs to the stream that filled it, and is not to be filled again before this one is through."""
        tensor.record_stream(stream)
        return tensor

    each(given.there, used)
    return given.host, given.there
