"""The model on this rank: its tables' shards, its share of the dense pieces, one training step, scores.

Shape legend: B rows of this rank's batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rtrain.batch import NONE
from rtrain.checkpoint.format import Stored
from rtrain.data.cursor import largest_share
from rtrain.data.protocol import AnyBatch, IdBatch
from rtrain.errors import CheckpointError
from rtrain.mesh import Mesh, rows_of_stages
from rtrain.models.protocol import Blueprint
from rtrain.parallel.apply import Layout, apply
from rtrain.parallel.chunks import Chunk, weight_name
from rtrain.parallel.placement import bytes_per_rank
from rtrain.parallel.precision import multiplied_as
from rtrain.parallel.stage import parameters_of_ranks, shapes
from rtrain.rounding import ceil_div, round_up
from rtrain.run import Run
from rtrain.training import rng
from rtrain.training.breakdown import Stopwatch
from rtrain.training.ready import Given, arrived
from rtrain.training.world import World

if TYPE_CHECKING:  # torchrec: seconds to import, and a decoder does without
    from rtrain.parallel.ahead import Travelling


@dataclass(frozen=True)
class _Ahead:
    """The batch of the next step, whose ids are on their way."""

    of: AnyBatch
    padded: AnyBatch
    begun: "Travelling"


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
        self.readers = mesh.readers(self.blueprint.dealt)
        self.per_microbatch = ceil_div(largest_share(run.global_batch, self.readers), run.parallel.microbatches)
        self._looked_up: dict[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}
        self._ahead: _Ahead | None = None
        self.units = 0.0
        """What the loss of the last step's global batch is a mean over."""
        budget = run.cluster.memory_gb_per_worker
        layout = Layout(
            parallel=run.parallel,
            mesh=mesh,
            optim=run.optim,
            sparse_optim=run.sparse_optim,
            seed=run.seed,
            global_batch=run.global_batch,
            blank=run.data.blank,
            device=world.device,
            local_size=world.local_size,
            memory_bytes=int(budget * 1024**3) if budget is not None else world.memory_bytes(),
        )
        try:
            share = apply(self.blueprint, layout, read=stored.read if stored else None, training=training)
        except CheckpointError:
            if stored:
                stored.check_model(shapes_of(self.blueprint))
            raise
        self.tables, self.placements, self.carry, self.takes = share.tables, share.placements, share.carry, share.takes
        self.modules, self.pipeline, self.tower = share.modules, share.pipeline, share.tower
        self.tensor, self.ranks, self.counts = share.tensor, share.ranks, share.counts

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last step's dense gradients before clipping; none where nothing computed it.

        Of a GPU this waits until it is known.
        """
        norm = self.tower.grad_norm if self.tower else None
        return None if norm is None else float(norm)

    @property
    def skipped(self) -> bool:
        """Whether some step was left out, because its gradients were not finite numbers."""
        return self.tower is not None and self.tower.skipped

    def bytes_per_rank(self) -> list[dict[str, int]]:
        """As `rtrain.parallel.placement.bytes_per_rank`."""
        run, pieces = self.run, self.blueprint.pieces
        sizes = parameters_of_ranks(pieces, run.parallel, self.mesh)
        return bytes_per_rank(run.parallel, run.sparse_optim, self.placements, self.mesh, dense_parameters=sizes)

    def restore_rng(self) -> None:
        """This rank's random state: the checkpoint's at the same world size, else fresh from the seed."""
        rng.begin(self.run.seed, self.world, self.stored)

    def train_step(
        self, batch: AnyBatch, *, step: int, total_steps: int, watch: Stopwatch, upcoming: AnyBatch | None = None
    ) -> Tensor:
        """One optimizer step; the loss as `forward_backward` gives it."""
        loss = self.forward_backward(batch, step=step, total_steps=total_steps, watch=watch, upcoming=upcoming)
        self.update(step=step, total_steps=total_steps, watch=watch)
        return loss

    def forward_backward(
        self, batch: AnyBatch, *, step: int, total_steps: int, watch: Stopwatch, upcoming: AnyBatch | None = None
    ) -> Tensor:
        """Gradients of the dense part and of the looked-up vectors; the sum of the losses that this rank counts.

        `upcoming`: the batch of the next call, whose ids travel meanwhile (`Parallel.overlap`); the same on all ranks.

        `step` of `total_steps` counts from 0: the lookup already takes the rate of the tables' update with it.

        Gradients are averaged over data ranks, so each rank's sum is scaled by data ranks / loss units of
        the global batch: the result is the mean over the global batch however its rows were dealt.
        """
        assert self.tower is not None, "built with training=False"
        if self.tables is not None and self.mesh.share(self.world.rank, self.blueprint.dealt).first:
            self.tables.saw(cast(IdBatch, batch).ids)
        batch, begun = self._taken(batch)
        self.units = batch.loss_units(self._summed)
        scale = self.mesh.data / self.units
        if self.tables is not None:
            self.tables.set_lr(self.run.sparse_optim.lr * self.run.sparse_optim.schedule.factor(step, total_steps))
        with watch.phase("forward"):
            if self.tables is not None and begun is not None:
                self._looked_up = self.tables.arrived(begun, self._lengths_of_step())
                if upcoming is not None and self.run.parallel.overlap and not self.tables.turns(step):
                    padded = self._padded(upcoming)
                    self._ahead = _Ahead(upcoming, padded, self._begun(padded))
            # Gradients are held here until all microbatches are through: tables want one update a step.
            self._leaves = self.carry.there(self._looked_up)
        named = self._named(batch, self._leaves)
        with multiplied_as(self.run.parallel.precision):
            if self.pipeline:
                with watch.phase("pipeline"), self.tower.accumulate():
                    total = self.pipeline.train(named, batch.target, scale)
            else:
                total = self._accumulate(named, batch.target, scale, watch)
        if self._ahead:
            self._ahead.begun.go_on()
        return total if self.counts else torch.zeros_like(total)

    def update(self, *, step: int, total_steps: int, watch: Stopwatch) -> None:
        """What the gradients say goes into tables and dense part, at the rates of `step`."""
        assert self.tower is not None, "built with training=False"
        run = self.run
        with watch.phase("optimizer"):
            self.tower.step(run.optim.lr * run.optim.schedule.factor(step, total_steps))
        if self.tables is not None and not self.tower.left_out:
            norm = self.grad_norm if run.sparse_optim.clip_with_dense else None
            with watch.phase("backward"), self.tables.updating():
                scale = 1.0 if norm is None else run.optim.clip_factor(norm)
                self.carry.back(self._looked_up, self._leaves, scale=scale)
        self._looked_up, self._leaves = {}, {}
        if self.tables is not None:
            self.tables.stepped(step)

    def drop_upcoming(self) -> None:
        """Let the ids of a batch arrive that is not to be trained on; a collective."""
        if self._ahead:
            self._ahead.begun.drop()
            self._ahead = None

    def _taken(self, batch: AnyBatch) -> "tuple[AnyBatch, Travelling | None]":
        """A training batch padded, and its ids on their way; those of another batch that was announced are dropped."""
        ahead = self._ahead
        if ahead and ahead.of is batch:
            self._ahead = None
            return ahead.padded, ahead.begun
        self.drop_upcoming()
        padded = self._padded(batch)
        return padded, self._begun(padded) if self.tables is not None else None

    def _padded(self, batch: AnyBatch) -> AnyBatch:
        return batch.padded(self._rows_of_step(batch), self._lengths_of_step())

    def _begun(self, padded: AnyBatch) -> "Travelling":
        assert self.tables is not None, "asked by whoever knows that there are some"
        return self.tables.begin(self.carry.share(cast(IdBatch, padded).ids))

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """As `rtrain.training.events.Gradients`."""
        assert self.tower is not None, "built with training=False"
        yield from self.tower.gradients()

    def _accumulate(self, named: dict[str, Tensor], target: Tensor, scale: float, watch: Stopwatch) -> Tensor:
        """Gradients of `scale` times the loss, microbatch by microbatch; the loss."""
        tower, count = self.tower, self.run.parallel.microbatches
        assert tower is not None
        if count == 1:
            with watch.phase("forward"):
                loss = self._loss(tower.module(**named), target)
            with watch.phase("backward"):
                tower.backward(loss * scale)
            return loss.detach()
        total = torch.zeros((), device=self.world.device)
        with tower.accumulate():
            for *part, part_target in zip(*(x.chunk(count) for x in (*named.values(), target)), strict=True):
                with watch.phase("forward"):
                    loss = self._loss(tower.bare(**dict(zip(named, part, strict=True))), part_target)
                with watch.phase("backward"):
                    (loss * scale).backward()
                total += loss.detach()
        return total

    def _summed(self, own: float) -> float:
        """Over the ranks that read different rows; a collective of one number, which weighted rows alone need."""
        reads = self.mesh.share(self.world.rank, self.blueprint.dealt).first
        found = torch.tensor(own if reads else 0.0, dtype=torch.float64, device=self.world.device)
        dist.all_reduce(found)
        return float(found)

    def _share(self, batch: AnyBatch) -> int:
        """Rows that no rank's share has more of: TorchRec and tensor ranks want the same number on all."""
        return largest_share(int(batch.global_rows), self.readers)

    def _rows_of_step(self, batch: AnyBatch) -> int:
        """Rows that a training batch is padded to."""
        if self.tables is not None and not self.pipeline:
            return self._share(batch)
        # Stages send tensors of one shape: as many rows in every step.
        return rows_of_stages(largest_share(self.run.global_batch, self.readers), self.run.parallel)

    def _lengths_of_step(self) -> Mapping[str, int]:
        """Of sequences: one and the same for tensor ranks and stages, and the batch's own where there are none."""
        return self.blueprint.longest if self.mesh.tensor * self.mesh.pipeline > 1 else NONE

    def _look_up(self, batch: AnyBatch, longest: Mapping[str, int]) -> dict[str, Tensor]:
        """The vectors of this rank's share of the batch's ids, of a model with tables: a collective over all ranks."""
        return self.tables(self.carry.share(cast(IdBatch, batch).ids), longest) if self.tables is not None else {}

    def _named(self, batch: AnyBatch, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank's stages take of what there is on it."""
        return {name: x for name, x in {**batch.inputs, **vectors}.items() if name in self.takes}

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
    def outputs(self, batch: AnyBatch) -> Any:
        """Of the batch's rows, what the objective takes: a tensor, or several; a collective over all ranks.

        None on the ranks of a pipeline that do not have its last stage.
        """
        longest = self._agreed_lengths(batch)
        even = batch.padded(round_up(self._share(batch), self.mesh.pipeline), longest)
        outputs = self._forward(self._named(even, self.carry.there(self._look_up(even, longest))))
        return tuple(x[: batch.rows] for x in outputs) if isinstance(outputs, tuple) else _first(outputs, batch.rows)

    def _forward(self, named: dict[str, Tensor]) -> Any:
        return self.pipeline.outputs(named) if self.pipeline else self._module()(**named)

    def _agreed_lengths(self, batch: AnyBatch) -> Mapping[str, int]:
        """Of sequences, in a batch of any size: as `_lengths_of_step`."""
        if self.tables is None or self.mesh.tensor * self.mesh.pipeline == 1:
            return NONE
        longest = cast(IdBatch, batch).ids.longest
        if self.mesh.tensor == 1:
            return dict(longest)
        agreed = torch.tensor(list(longest.values()), device=self.world.device)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.tensor.group)
        return dict(zip(longest, agreed.tolist(), strict=True))

    def predict(self, batch: AnyBatch) -> Tensor | None:
        """What a server of the export answers for the batch's rows: float64 [B] or [B, labels]; a collective.

        None on the ranks of a pipeline that do not have its last stage.
        """
        assert self.objective.link is not None, "asked by whoever knows that it has one"
        with self._evaluating():
            outputs = self.outputs(batch)
        return None if outputs is None else self.objective.link(outputs)

    def score(self, batches: Iterable[Given]) -> tuple[Mapping[str, Any], int]:
        """What the run's metrics measure of this rank's rows, and how many of those are not numbers; a collective.

        One entry a task: the prefix of its metrics' names (empty for the first) -> what they take.
        """
        tally = self.objective.tally(self.ranks, self.run.metrics)
        of_outputs = self.objective.tallies == "outputs"
        with self._evaluating():
            for given in batches:
                _, batch = arrived(given, self.world.device)
                found = self.outputs(batch) if of_outputs else self._sum_of_losses(batch)
                if self.counts:
                    tally.add(found, batch)
        return tally.scored()

    @torch.no_grad()
    def losses(self, batch: AnyBatch) -> Tensor | None:
        """The loss of each of the batch's rows, a sum over its targets: float64 [B]; a collective.

        None on ranks whose rows another one tells of: further tensor ranks, and stages before the last.
        """
        found: list[float] = []
        with self._evaluating():
            for outputs, target in self._in_parts(batch):
                each = () if outputs is None else zip(outputs.split(1), target.split(1), strict=True)
                found += [float(self._loss(*of_row)) for of_row in each]
        return torch.tensor(found[: batch.rows], dtype=torch.float64) if self.counts else None

    @torch.no_grad()
    def _sum_of_losses(self, batch: AnyBatch) -> float:
        """Of a batch of any size."""
        parts = self._in_parts(batch)
        return sum(0.0 if outputs is None else float(self._loss(outputs, target)) for outputs, target in parts)

    def _in_parts(self, batch: AnyBatch) -> Iterator[tuple[Any, Tensor]]:
        """Outputs and targets of a batch of any size, in parts of a training step's."""
        rows = self.per_microbatch * self.run.parallel.microbatches
        batch = batch.padded(round_up(self._share(batch), rows))  # as many parts on every rank
        for *inputs, target in zip(*(x.split(rows) for x in (*batch.inputs.values(), batch.target)), strict=True):
            yield self._forward(dict(zip(batch.inputs, inputs, strict=True))), target

    def chunks(self) -> Iterator[Chunk]:
        """All state of this rank for a checkpoint; a collective."""
        assert self.tower is not None, "built with training=False"
        if self.tables is not None:
            yield from self.tables.chunks()
        yield from self.tower.chunks()
        yield from rng.chunks(self.world.rank)


def _first(rows: Tensor | None, count: int) -> Tensor | None:
    return None if rows is None else rows[:count]


def shapes_of(blueprint: Blueprint) -> dict[str, tuple[int, ...]]:
    """Logical name -> shape of the model's tensors as a checkpoint has them; no weights are made."""
    found: dict[str, tuple[int, ...]] = {}
    for table in blueprint.tables:
        if table.managed and not table.beside:
            found[weight_name(f"tables.managed.keys_{table.name}")] = (table.rows,)
        found[weight_name(f"tables.{table.path}.weight")] = (table.rows, table.dim)
    for piece in blueprint.pieces:
        found |= {weight_name(f"{piece.name}.{name}"): shape for name, shape in shapes(piece).items()}
    return found
