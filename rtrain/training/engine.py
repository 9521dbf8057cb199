"""What the loop knows of a model: one protocol, and which engine trains which kind of model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from rtrain.checkpoint.format import Stored
from rtrain.data.interactions import Interactions
from rtrain.errors import CheckpointError
from rtrain.mesh import Mesh
from rtrain.models.decoder import Decoder
from rtrain.parallel.chunks import Chunk
from rtrain.parallel.placement import TablePlacement
from rtrain.run import Run
from rtrain.training.breakdown import Stopwatch
from rtrain.training.world import World


class Engine(Protocol):
    """One rank's share of a model and its optimizers.

    Built in the order that makes a resume exact: weights, then the wrapping, then optimizer state;
    the random state comes last (`restore_rng`), after everything that draws numbers.
    """

    world: World
    placements: tuple[TablePlacement, ...]
    """Where each embedding table lies; none for a dense model."""

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last step's dense gradients before clipping; none where nothing computed it."""

    def bytes_per_rank(self) -> list[dict[str, int]]:
        """Bytes on each rank by kind, worked out from the layout."""

    def restore_rng(self) -> None:
        """This rank's random state: the checkpoint's at the same world size, else fresh from the seed."""

    def train_step(self, batch: Any, *, step: int, total_steps: int, watch: Stopwatch) -> Tensor:
        """One optimizer step; returns the sum of the losses that this rank counts, detached."""

    def score(self, batches: Iterable[Any]) -> tuple[Mapping[str, Any], int]:
        """What the run's metrics measure of this rank's rows, and how many of those are not numbers; a collective.

        One entry a task: the prefix of its metrics' names (empty for the first) -> what they take.
        """

    def chunks(self) -> Iterator[Chunk]:
        """All state of this rank for a checkpoint; a collective."""


def build_engine(run: Run, mesh: Mesh, world: World, *, stored: Stored | None, training: bool) -> Engine:
    """The engine of the run's kind of model, fresh or from a checkpoint; a collective over all ranks.

    Raises:
        CheckpointError: a damaged checkpoint, or one of another model; all tensors that differ are named.
    """
    if isinstance(run.model, Decoder):
        from rtrain.training.dense_replica import DenseReplica as Kind
    else:
        from rtrain.training.replica import Replica as Kind  # type: ignore[assignment]
    try:
        return Kind(run, mesh, world, stored=stored, training=training)
    except CheckpointError:
        if stored:
            stored.check_model(_shapes(run))
        raise


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Logical name -> shape of the model's tensors as a checkpoint has them; no weights are made."""
    with torch.device("meta"):
        if isinstance(run.model, Decoder):
            return {
                f"model.{piece.name}.{name}": tuple(weight.shape)
                for piece in run.model.pieces()
                for name, weight in piece.build().named_parameters()
                if name not in piece.shared
            }
        assert isinstance(run.data, Interactions), "Run refuses another pair"
        model = run.model.build(run.data.schema, seed=run.seed, table_device="meta")
        return {f"model.{name}": tuple(weight.shape) for name, weight in model.state_dict().items()}
