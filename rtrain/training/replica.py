"""The model on this rank: tables sharded, tower wrapped, one training step, predictions."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rtrain.checkpoint.format import Stored
from rtrain.data.interactions import Interactions
from rtrain.mesh import Mesh
from rtrain.metrics.state import Scored
from rtrain.models.ranking import RankingConfig, RankingModel
from rtrain.parallel import tower as towers
from rtrain.parallel.chunks import Chunk, whole_places
from rtrain.parallel.embeddings import ShardedTables, placements, plan_tables
from rtrain.parallel.groups import make_groups
from rtrain.parallel.placement import TablePlacement, bytes_per_rank
from rtrain.run import Run
from rtrain.schema import Batch
from rtrain.training import rng
from rtrain.training.breakdown import Stopwatch
from rtrain.training.world import World


class Replica:
    """One rank's share of the model and its optimizers.

    Built in the order that makes a resume exact: weights, then the wrapping, then optimizer state;
    the random state comes last (`restore_rng`), after everything that draws numbers.
    """

    def __init__(self, run: Run, mesh: Mesh, world: World, *, stored: Stored | None, training: bool):
        config = run.model
        assert isinstance(config, RankingConfig) and isinstance(run.data, Interactions)
        schema = self.schema = run.data.schema
        self.run, self.world, self.stored = run, world, stored
        self.mesh, self.data_ranks = mesh, mesh.data
        rows_per_rank = -(-run.global_batch // mesh.data)
        tables = config.table_list(schema)
        budget = run.cluster.memory_gb_per_worker
        plan = plan_tables(
            tables,
            run.parallel,
            world_size=world.size,
            local_world_size=world.local_size,
            device=world.device.type,
            batch_per_rank=rows_per_rank,
            memory_bytes_per_rank=int(budget * 1024**3) if budget is not None else world.memory_bytes(),
        )
        said = [plan]
        dist.broadcast_object_list(said, src=0)  # rank 0's plan for all: plans that differ would deadlock
        plan = said[0]
        self.placements: tuple[TablePlacement, ...] = placements(plan, tables)
        self.tables = ShardedTables(tables, config.feature_names(schema), plan, run.sparse_optim, world.device)
        self.model: RankingModel = config.build(schema, seed=run.seed, table_device="meta")
        places = whole_places(self.model.tower, "tower.", writes=world.leads)
        if stored:
            self.tables.restore(stored.read)
            towers.load_weights(self.model.tower, places, stored.read)
        else:
            self.tables.initialise(run.seed)
        self.tower: towers.Tower | None = None
        dense: nn.Module = self.model.tower.to(world.device)
        self.dense_parameters = sum(p.numel() for p in dense.parameters())
        if training:
            groups = make_groups(mesh)
            self.tower = towers.wrap(
                dense, places, run.parallel, run.optim, groups, world.device, rows_per_microbatch=rows_per_rank
            )
            dense = self.tower.module
            if stored:
                self.tower.restore(stored.read)
        self.model.tables, self.model.tower = self.tables, dense
        self.model.train(training)

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last step's dense gradients before clipping."""
        return self.tower.grad_norm if self.tower else None

    def bytes_per_rank(self) -> list[dict[str, int]]:
        """As `rtrain.parallel.placement.bytes_per_rank`."""
        sizes = [self.dense_parameters] * self.mesh.world_size
        run = self.run
        return bytes_per_rank(run.parallel, run.sparse_optim, self.placements, self.mesh, dense_parameters=sizes)

    def restore_rng(self) -> None:
        """This rank's random state: the checkpoint's at the same world size, else fresh from the seed."""
        rng.begin(self.run.seed, self.world, self.stored)

    def train_step(self, batch: Batch, *, step: int, total_steps: int, watch: Stopwatch) -> Tensor:
        """One optimizer step; returns the sum of this rank's row losses, detached.

        Gradients are averaged over ranks, so each rank's sum is scaled by ranks / rows of the
        global batch: the result is the mean over the global batch however its rows were dealt.
        """
        batch = self._even(batch)
        tower = self.tower
        assert tower is not None, "built with training=False"
        run = self.run
        self.tables.set_lr(run.sparse_optim.lr * run.sparse_optim.schedule.factor(step, total_steps))
        with watch.phase("forward"):
            total = self.model.objective.loss(self.model(batch), batch)
        with watch.phase("backward"):
            tower.backward(total * (self.world.size / batch.global_rows))
        with watch.phase("optimizer"):
            tower.step(run.optim.lr * run.optim.schedule.factor(step, total_steps))
        return total.detach()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """float32 logits of the batch's rows, in the shape of `Batch.label`; a collective over all ranks."""
        was_training = self.model.training
        self.model.eval()
        logits: Tensor = self.model(self._even(batch))
        self.model.train(was_training)
        return logits[: batch.rows]

    def predict(self, batch: Batch) -> Tensor:
        """float64 probabilities of the batch's rows, as a server of the export gives them; a collective."""
        return self.model.objective.link(self.logits(batch))

    def score(self, batches: Iterable[Batch]) -> tuple[dict[str, Scored], int]:
        """This rank's rows of a split, scored for each label that they have; see `Engine.score`."""
        logits, labels, groups = [], [], []
        for batch in batches:
            logits.append(self.logits(batch.to(self.world.device)).double().cpu().numpy())
            labels.append(batch.label.double().numpy())
            groups.append(batch.group.numpy())
        prefixes = self.schema.metric_prefixes
        logits_NL, labels_NL = (np.concatenate(parts).reshape(-1, len(prefixes)) for parts in (logits, labels))
        scored = self.model.objective.scored(logits_NL, labels_NL, np.concatenate(groups), prefixes)
        return scored, sum(int(np.count_nonzero(~np.isfinite(task.logits))) for task in scored.values())

    def _even(self, batch: Batch) -> Batch:
        """The batch with as many rows as every other rank's: shares differ by one, TorchRec wants them equal."""
        return batch.padded(-(-batch.global_rows // self.data_ranks))

    def chunks(self) -> Iterator[Chunk]:
        """All state of this rank for a checkpoint; a collective."""
        yield from self.tables.chunks()
        assert self.tower is not None, "built with training=False"
        yield from self.tower.chunks()
        yield from rng.chunks(self.world.rank)
