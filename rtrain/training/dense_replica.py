"""A dense model on this rank: its stage and tensor shares, wrapped by ZeRO, one training step, scores.

Shape legend: B rows of this rank's batch, T tokens, V vocabulary of a tensor rank's share.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rtrain.checkpoint.format import Stored
from rtrain.data.tokens import TokenBatch
from rtrain.mesh import Mesh
from rtrain.metrics.language import TokensScored
from rtrain.models.decoder import Decoder
from rtrain.parallel import tower as towers
from rtrain.parallel.chunks import Chunk
from rtrain.parallel.groups import make_groups
from rtrain.parallel.pipeline import Pipeline
from rtrain.parallel.placement import TablePlacement, bytes_per_rank
from rtrain.parallel.stage import build_stages, initialise, parameters_of_rank, stages_of_rank
from rtrain.parallel.tensor import TensorRank
from rtrain.run import Run
from rtrain.training import rng
from rtrain.training.breakdown import Stopwatch
from rtrain.training.world import World


class DenseReplica:
    """See `rtrain.training.engine.Engine`; what `Replica` is to a model with tables."""

    placements: tuple[TablePlacement, ...] = ()

    def __init__(self, run: Run, mesh: Mesh, world: World, *, stored: Stored | None, training: bool):
        config = run.model
        assert isinstance(config, Decoder)
        self.run, self.world, self.stored, self.mesh, self.config = run, world, stored, mesh, config
        groups = self.groups = make_groups(mesh)
        parallel = run.parallel
        self.tensor = TensorRank(groups.along["tensor"], groups.index("tensor"), groups.size("tensor"))
        self.data_ranks = mesh.data
        per_microbatch = math.ceil(run.global_batch / (mesh.data * parallel.microbatches))
        self.rows = per_microbatch * parallel.microbatches
        self.modules, places = build_stages(
            stages_of_rank(config, parallel, mesh, world.rank),
            self.tensor,
            world.device,
            writes=groups.index("data") == 0,
        )
        if stored:
            towers.load_weights(self.modules, places, stored.read)
        else:
            initialise(self.modules, places, config, run.seed)
        self.pipeline: Pipeline | None = None
        if mesh.pipeline > 1:
            self.pipeline = Pipeline(
                list(self.modules),
                parallel.schedule,
                groups,
                world.device,
                microbatches=parallel.microbatches,
                loss=self._loss,
            )
        self.tower: towers.Tower | None = None
        self.counts = groups.index("tensor") == 0 and (self.pipeline is None or self.pipeline.last)
        """Whether this rank's loss counts: it is the same on all tensor ranks, and known to the last stage only."""
        whole = self.modules if self.pipeline else self.modules[0]
        if not self.pipeline:
            places = {name.removeprefix("0."): place for name, place in places.items()}
        if training:
            self.tower = towers.wrap(
                whole,
                places,
                parallel,
                run.optim,
                groups,
                world.device,
                rows_per_microbatch=per_microbatch,
                accumulates=self.pipeline is not None or parallel.microbatches > 1,
            )
            if stored:
                self.tower.restore(stored.read)
        self.modules.train(training)

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last step's gradients before clipping."""
        return self.tower.grad_norm if self.tower else None

    def bytes_per_rank(self) -> list[dict[str, int]]:
        """As `rtrain.parallel.placement.bytes_per_rank`."""
        ranks = range(self.mesh.world_size)
        sizes = [parameters_of_rank(self.config, self.run.parallel, self.mesh, r) for r in ranks]
        return bytes_per_rank(self.run.parallel, self.run.sparse_optim, (), self.mesh, dense_parameters=sizes)

    def restore_rng(self) -> None:
        """This rank's random state: the checkpoint's at the same world size, else fresh from the seed."""
        rng.begin(self.run.seed, self.world, self.stored)

    def train_step(self, batch: TokenBatch, *, step: int, total_steps: int, watch: Stopwatch) -> Tensor:
        """One optimizer step; returns the sum of the token losses that this rank counts, detached.

        Gradients are averaged over data ranks, so each rank's sum is scaled by data ranks / tokens of
        the global batch: the result is the mean over the global batch however its rows were dealt.
        """
        batch = batch.padded(self.rows)
        tower, run = self.tower, self.run
        assert tower is not None, "built with training=False"
        scale = self.data_ranks / batch.loss_units
        count = run.parallel.microbatches
        if self.pipeline:
            with watch.phase("pipeline"), tower.accumulate():
                total = self.pipeline.train(batch.tokens, batch.targets, scale)
        elif count == 1:
            with watch.phase("forward"):
                loss = self._loss(tower.module(batch.tokens), batch.targets)
            with watch.phase("backward"):
                tower.backward(loss * scale)
            total = loss.detach()
        else:
            total = torch.zeros((), device=self.world.device)
            with tower.accumulate():
                for tokens, targets in zip(batch.tokens.chunk(count), batch.targets.chunk(count), strict=True):
                    with watch.phase("forward"):
                        loss = self._loss(tower.bare(tokens), targets)
                    with watch.phase("backward"):
                        (loss * scale).backward()
                    total += loss.detach()
        with watch.phase("optimizer"):
            tower.step(run.optim.lr * run.optim.schedule.factor(step, total_steps))
        return total if self.counts else torch.zeros_like(total)

    @torch.no_grad()
    def score(self, batches: Iterable[TokenBatch]) -> tuple[dict[str, TokensScored], int]:
        """Summed losses of this rank's rows, and how many batches gave no number; see `Engine.score`."""
        was_training = self.modules.training
        self.modules.eval()
        loss, tokens, broken = 0.0, 0, 0
        for whole in batches:
            batch = whole.to(self.world.device)
            share = -(-batch.global_rows // self.data_ranks)
            batch = batch.padded(-(-share // self.rows) * self.rows)  # as many parts on every rank
            parts = zip(batch.tokens.split(self.rows), batch.targets.split(self.rows), strict=True)
            sums = [float(self._score(inputs, targets)) for inputs, targets in parts]
            if self.counts:
                loss += sum(sums)
                tokens += int((batch.row >= 0).sum()) * batch.tokens.shape[1]
                broken += any(s != s or s in (float("inf"), float("-inf")) for s in sums)
        self.modules.train(was_training)
        return {"": TokensScored(loss=loss, tokens=tokens)}, broken

    def _score(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if self.pipeline:
            return self.pipeline.score(tokens_BT, targets_BT)
        module = self.tower.module if self.tower else self.modules[0]
        return self._loss(module(tokens_BT), targets_BT)

    def _loss(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        return self.config.objective.loss(logits_BTV, targets_BT, self.tensor)

    def chunks(self) -> Iterator[Chunk]:
        """All state of this rank for a checkpoint; a collective."""
        assert self.tower is not None, "built with training=False"
        yield from self.tower.chunks()
        yield from rng.chunks(self.world.rank)
