"""The model on this rank: its tables' shards, its share of the dense pieces, one training step, scores.

Shape legend: B rows of this rank's batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtrain.checkpoint.format import Stored
from rtrain.errors import CheckpointError
from rtrain.mesh import Mesh
from rtrain.models.protocol import Blueprint
from rtrain.parallel import tower as towers
from rtrain.parallel.chunks import Chunk
from rtrain.parallel.groups import make_groups
from rtrain.parallel.pipeline import Pipeline
from rtrain.parallel.placement import TablePlacement, bytes_per_rank
from rtrain.parallel.ranks import MeshRanks
from rtrain.parallel.stage import build_stages, initialise, parameters_of_rank, shapes, stages_of_rank
from rtrain.parallel.tensor import TensorRank
from rtrain.run import Run
from rtrain.training import rng
from rtrain.training.breakdown import Stopwatch
from rtrain.training.world import World

if TYPE_CHECKING:
    from rtrain.parallel.embeddings import ShardedTables


class Replica:
    """One rank's share of a model and its optimizers.

    Built in the order that makes a resume exact: weights, then the wrapping, then optimizer state;
    the random state comes last (`restore_rng`), after everything that draws numbers.
    """

    def __init__(self, run: Run, mesh: Mesh, world: World, *, stored: Stored | None, training: bool):
        """A collective over all ranks; `stored`: the checkpoint to begin from.

        Raises:
            CheckpointError: a damaged checkpoint, or one of another model; all tensors that differ are named.
        """
        self.run, self.world, self.stored, self.mesh = run, world, stored, mesh
        self.blueprint = run.blueprint
        self.objective = self.blueprint.objective
        try:
            self._build(training)
        except CheckpointError:
            if stored:
                stored.check_model(shapes_of(self.blueprint))
            raise

    def _build(self, training: bool) -> None:
        run, parallel, stored, device = self.run, self.run.parallel, self.stored, self.world.device
        self.per_microbatch = -(-run.global_batch // (self.mesh.data * parallel.microbatches))
        groups = make_groups(self.mesh)
        self.tables: ShardedTables | None = None
        self.placements: tuple[TablePlacement, ...] = ()
        if self.blueprint.tables:
            self.tables, self.placements = self._shard_tables()
        self.tensor = TensorRank(groups.along["tensor"], groups.index("tensor"), groups.size("tensor"))
        self.ranks = MeshRanks(self.tensor, groups)
        stages = stages_of_rank(self.blueprint.pieces, parallel, self.mesh, self.world.rank)
        self.modules, places = build_stages(
            stages, self.tensor, device, seed=run.seed, writes=groups.index("data") == 0
        )
        if stored:
            towers.load_weights(self.modules, places, stored.read)
        else:
            initialise(self.modules, places, stages, run.seed)
        self.pipeline: Pipeline | None = None
        if self.mesh.pipeline > 1:
            self.pipeline = Pipeline(
                list(self.modules),
                parallel.schedule,
                groups,
                device,
                microbatches=parallel.microbatches,
                loss=self._loss,
            )
        self.counts = groups.index("tensor") == 0 and (self.pipeline is None or self.pipeline.last)
        """Whether this rank's loss counts: it is the same on all tensor ranks, and known to the last stage only."""
        whole = self.modules if self.pipeline else self.modules[0]
        if not self.pipeline:
            places = {name.removeprefix("0."): place for name, place in places.items()}
        self.tower: towers.Tower | None = None
        if training:
            self.tower = towers.wrap(
                whole,
                places,
                parallel,
                run.optim,
                groups,
                device,
                rows_per_microbatch=self.per_microbatch,
                accumulates=self.pipeline is not None or parallel.microbatches > 1,
            )
            if stored:
                self.tower.restore(stored.read)
        self.modules.train(training)

    def _shard_tables(self) -> tuple["ShardedTables", tuple[TablePlacement, ...]]:
        """The tables' shards, filled."""
        # torchrec and fbgemm, seconds to import: a model without tables does without.
        from rtrain.parallel.embeddings import apply_tables

        run, world = self.run, self.world
        budget = run.cluster.memory_gb_per_worker
        tables, placements = apply_tables(
            self.blueprint.tables,
            self.blueprint.features,
            run.parallel,
            run.sparse_optim,
            world.device,
            local_world_size=world.local_size,
            batch_per_rank=self.per_microbatch * run.parallel.microbatches,
            memory_bytes_per_rank=int(budget * 1024**3) if budget is not None else world.memory_bytes(),
        )
        if self.stored:
            tables.restore(self.stored.read)
        else:
            tables.initialise(run.seed)
        return tables, placements

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last step's dense gradients before clipping; none where nothing computed it."""
        return self.tower.grad_norm if self.tower else None

    def bytes_per_rank(self) -> list[dict[str, int]]:
        """As `rtrain.parallel.placement.bytes_per_rank`."""
        run, pieces = self.run, self.blueprint.pieces
        sizes = [parameters_of_rank(pieces, run.parallel, self.mesh, r) for r in range(self.mesh.world_size)]
        return bytes_per_rank(run.parallel, run.sparse_optim, self.placements, self.mesh, dense_parameters=sizes)

    def restore_rng(self) -> None:
        """This rank's random state: the checkpoint's at the same world size, else fresh from the seed."""
        rng.begin(self.run.seed, self.world, self.stored)

    def train_step(self, batch: Any, *, step: int, total_steps: int, watch: Stopwatch) -> Tensor:
        """One optimizer step; returns the sum of the losses that this rank counts, detached.

        Gradients are averaged over data ranks, so each rank's sum is scaled by data ranks / loss units of
        the global batch: the result is the mean over the global batch however its rows were dealt.
        """
        tower, run, count = self.tower, self.run, self.run.parallel.microbatches
        assert tower is not None, "built with training=False"
        # Without tables as many rows in every step, since stages send tensors of one shape.
        batch = batch.padded(self._share(batch) if self.tables is not None else self.per_microbatch * count)
        scale = self.mesh.data / batch.loss_units
        if self.tables is not None:
            self.tables.set_lr(run.sparse_optim.lr * run.sparse_optim.schedule.factor(step, total_steps))
        if self.pipeline:
            with watch.phase("pipeline"), tower.accumulate():
                total = self.pipeline.train(batch.inputs[0], batch.target, scale)
        else:
            with watch.phase("forward"):
                vectors = self._look_up(batch)
                # Gradients are held here until all microbatches are through: fused optimizers want one update a step.
                leaves = [vector.detach().requires_grad_(vector.requires_grad) for vector in vectors]
            total = self._accumulate((*batch.inputs, *leaves), batch.target, scale, watch)
            with watch.phase("backward"):
                _go_back(vectors, leaves)
        with watch.phase("optimizer"):
            tower.step(run.optim.lr * run.optim.schedule.factor(step, total_steps))
        return total if self.counts else torch.zeros_like(total)

    def _accumulate(self, inputs: tuple[Tensor, ...], target: Tensor, scale: float, watch: Stopwatch) -> Tensor:
        """Gradients of `scale` times the loss, microbatch by microbatch; the loss."""
        tower, count = self.tower, self.run.parallel.microbatches
        assert tower is not None
        if count == 1:
            with watch.phase("forward"):
                loss = self._loss(tower.module(*inputs), target)
            with watch.phase("backward"):
                tower.backward(loss * scale)
            return loss.detach()
        total = torch.zeros((), device=self.world.device)
        with tower.accumulate():
            for *part, part_target in zip(*(x.chunk(count) for x in (*inputs, target)), strict=True):
                with watch.phase("forward"):
                    loss = self._loss(tower.bare(*part), part_target)
                with watch.phase("backward"):
                    (loss * scale).backward()
                total += loss.detach()
        return total

    def _share(self, batch: Any) -> int:
        """Rows of the largest rank's share: shares differ by one, and TorchRec wants them equal."""
        return int(-(-batch.global_rows // self.mesh.data))

    def _look_up(self, batch: Any) -> tuple[Tensor, ...]:
        """The vectors of the batch's ids, of a model with tables: a collective over all ranks."""
        return self.tables(batch.ids) if self.tables is not None else ()

    def _loss(self, outputs: Any, target: Tensor) -> Tensor:
        return self.objective.loss(outputs, target, self.ranks)

    def _module(self) -> nn.Module:
        return self.tower.module if self.tower else self.modules[0]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        parts = [self._module(), self.modules, *([self.tables] if self.tables is not None else [])]
        were = [part.training for part in parts]
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for part, was in zip(parts, were, strict=True):
                part.train(was)

    @torch.no_grad()
    def outputs(self, batch: Any) -> Any:
        """Of the batch's rows, what the objective takes: a tensor, or several; a collective over all ranks."""
        even = batch.padded(self._share(batch))
        outputs: Any = self._module()(*even.inputs, *self._look_up(even))
        return tuple(x[: batch.rows] for x in outputs) if isinstance(outputs, tuple) else outputs[: batch.rows]

    def predict(self, batch: Any) -> Tensor:
        """What a server of the export answers for the batch's rows: float64 [B] or [B, labels]; a collective."""
        assert self.objective.link is not None, "asked by whoever knows that it has one"
        with self._evaluating():
            return self.objective.link(self.outputs(batch))

    def score(self, batches: Iterable[Any]) -> tuple[Mapping[str, Any], int]:
        """What the run's metrics measure of this rank's rows, and how many of those are not numbers; a collective.

        One entry a task: the prefix of its metrics' names (empty for the first) -> what they take.
        """
        tally = self.objective.tally(self.ranks, self.run.metrics)
        of_outputs = self.objective.tallies == "outputs"
        with self._evaluating():
            for given in batches:
                batch = given.to(self.world.device)
                found = self.outputs(batch) if of_outputs else self._sum_of_losses(batch)
                if self.counts or of_outputs:
                    tally.add(found, batch)
        return tally.scored()

    @torch.no_grad()
    def _sum_of_losses(self, batch: Any) -> float:
        """Of a batch of any size, in parts of a training step's."""
        rows = self.per_microbatch * self.run.parallel.microbatches
        batch = batch.padded(-(-self._share(batch) // rows) * rows)  # as many parts on every rank
        parts = zip(*(x.split(rows) for x in (*batch.inputs, batch.target)), strict=True)
        if self.pipeline:
            return sum(float(self.pipeline.score(*part)) for part in parts)
        return sum(float(self._loss(self._module()(*inputs), target)) for *inputs, target in parts)

    def chunks(self) -> Iterator[Chunk]:
        """All state of this rank for a checkpoint; a collective."""
        assert self.tower is not None, "built with training=False"
        if self.tables is not None:
            yield from self.tables.chunks()
        yield from self.tower.chunks()
        yield from rng.chunks(self.world.rank)


def _go_back(vectors: tuple[Tensor, ...], leaves: list[Tensor]) -> None:
    """The gradients at `leaves` through the lookup, whose fused optimizers update the tables: a collective."""
    pairs = [(vector, leaf) for vector, leaf in zip(vectors, leaves, strict=True) if leaf.requires_grad]
    if pairs:
        # What the model did not use has a gradient too, so that every rank takes part in every exchange.
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for _, leaf in pairs]
        torch.autograd.backward([vector for vector, _ in pairs], gradients)


def shapes_of(blueprint: Blueprint) -> dict[str, tuple[int, ...]]:
    """Logical name -> shape of the model's tensors as a checkpoint has them; no weights are made."""
    found: dict[str, tuple[int, ...]] = {}
    for table in blueprint.tables:
        found[f"model.tables.{table.path}.weight"] = (table.rows, table.dim)
    for piece in blueprint.pieces:
        found |= {f"model.{piece.name}.{name}": shape for name, shape in shapes(piece).items()}
    return found
