"""A batch's ids on their way to the ranks that hold their rows, while the step before still computes.

TorchRec parts a lookup in three: how many ids go where, the ids themselves, rows and their way back. The first two
depend on no weight, so that a step later or earlier they are the same.
"""

from typing import Any

from rtrain.batch import Jagged
from rtrain.nn.bags import Tables


class Travelling:
    """The ids of one batch; each call is a collective over all ranks, in the same order on each."""

    def __init__(self, tables: Tables, ids: Jagged):
        """Say how many ids go where; nobody waits. `tables`: sharded."""
        self.ids = ids
        self._numbers, self._ids = list[Any](), list[Any]()
        for collection, given in tables.given(ids):
            context = collection.create_context()
            self._numbers.append((collection, context, collection.input_dist(context, given)))

    def go_on(self) -> None:
        """Send the ids, once it is known how many come; to be called when that has been for long."""
        self._ids += [(collection, context, numbers.wait()) for collection, context, numbers in self._numbers]
        self._numbers.clear()

    def vectors(self) -> list[Any]:
        """What each collection of the tables gives for them, as they are now."""
        self.go_on()
        return [collection.compute_and_output_dist(context, ids.wait()) for collection, context, ids in self._ids]

    def drop(self) -> None:
        """Let them arrive, and leave it at that: what is under way when a process group ends would hang it."""
        self.go_on()
        for *_, ids in self._ids:
            ids.wait()
