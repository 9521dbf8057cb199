"""A model under its layout, in the one order that keeps it the same model: the screen to read first in this room.

Tables -> pieces -> weights -> tensor ranks -> pipeline -> ZeRO or DDP -> optimizer state. Each comes once what it
stands on is there: a stage is cut before its weights are allocated, weights are there before they are wrapped.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from rtrain.mesh import Mesh, Parallel
from rtrain.models.protocol import Blueprint
from rtrain.optim import AdamW, SparseOptim
from rtrain.parallel import tower as towers
from rtrain.parallel.activations import Blank, kept_beside_tables
from rtrain.parallel.carry import Carry
from rtrain.parallel.chunks import ReadChunk
from rtrain.parallel.groups import make_groups
from rtrain.parallel.pipeline import Pipeline
from rtrain.parallel.placement import TablePlacement, left_for_tables
from rtrain.parallel.ranks import MeshRanks
from rtrain.parallel.stage import build_stages, cut_into_stages, initialise, parameters_of_ranks
from rtrain.parallel.tensor import TensorRank
from rtrain.rounding import ceil_div

if TYPE_CHECKING:
    from rtrain.parallel.embeddings import ShardedTables


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a model is laid out by."""

    parallel: Parallel
    mesh: Mesh
    optim: AdamW
    sparse_optim: SparseOptim
    seed: int
    global_batch: int
    """Rows."""
    device: torch.device
    local_size: int
    """Ranks on this node."""
    blank: Blank
    """A batch of the data, by which is counted what a step keeps."""
    memory_bytes: int
    """Of a rank, for weights, gradients, optimizers, and what a step keeps where that is counted."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank has of a model."""

    tables: "ShardedTables | None"
    placements: tuple[TablePlacement, ...]
    carry: Carry
    """Takes looked-up vectors to the stages that take them, and their gradients back."""
    takes: frozenset[str]
    """Names that this rank's stages take."""
    modules: nn.ModuleList
    """Its stages, under no wrapping."""
    pipeline: Pipeline | None
    tower: "towers.Tower | None"
    """Its stages, wrapped for training."""
    tensor: TensorRank
    ranks: MeshRanks
    counts: bool
    """Whether its loss counts: the last stage knows it, and tensor ranks that share tokens all the same."""


def apply(blueprint: Blueprint, layout: Layout, *, read: ReadChunk | None, training: bool) -> Share:
    """This rank's share of the model; a collective over all ranks.

    `read`: gives the tensors of a checkpoint to begin from; none: fresh ones from the seed, the same at every layout.

    Raises:
        ConfigError: tables that do not fit.
        CheckpointError: a damaged checkpoint, or one of another model.
    """
    parallel, mesh, device = layout.parallel, layout.mesh, layout.device
    groups = make_groups(mesh)
    tables, placements = _shard_tables(blueprint, layout, read)

    everywhere = cut_into_stages(blueprint.pieces, parallel, mesh)
    stages = everywhere[groups.index("pipeline")]
    tensor = TensorRank(groups.along["tensor"], groups.index("tensor"), groups.size("tensor"), blueprint.dealt)
    ranks = MeshRanks(tensor, groups, blueprint.dealt)
    modules, places = build_stages(
        stages,
        tensor,
        device,
        precision=parallel.precision,
        seed=layout.seed,
        first=blueprint.pieces[0].name,
        # Backward begins with the last piece: what it would do again is what was freed a moment before.
        keeps=blueprint.pieces[-1].name if parallel.recompute == "pieces" else "",
        writes=groups.index("data") == 0,
    )
    if read:
        towers.load_weights(modules, places, read)
    else:
        initialise(modules, places, stages, layout.seed)

    pipeline = None
    whole: nn.Module = modules
    if mesh.pipeline > 1:
        pipeline = Pipeline(
            list(modules),
            parallel.schedule,
            groups,
            device,
            microbatches=parallel.microbatches,
            loss=lambda outputs, target: blueprint.objective.loss(outputs, target, ranks),
        )
    else:
        whole, places = modules[0], {name.removeprefix("0."): place for name, place in places.items()}

    tower = None
    if training:
        tower = towers.wrap(
            whole,
            places,
            parallel,
            layout.optim,
            groups,
            device,
            rows_per_microbatch=ceil_div(layout.global_batch, mesh.readers(blueprint.dealt) * parallel.microbatches),
            accumulates=pipeline is not None or parallel.microbatches > 1,
        )
        if read:
            tower.restore(read)
    modules.train(training)
    of_its_own = blueprint.dealt == "rows" or groups.index("tensor") == 0
    return Share(
        tables=tables,
        placements=placements,
        carry=Carry(groups, everywhere),
        takes=frozenset(name for pieces in stages for piece in pieces for name in piece.takes),
        modules=modules,
        pipeline=pipeline,
        tower=tower,
        tensor=tensor,
        ranks=ranks,
        counts=of_its_own and (pipeline is None or pipeline.last),
    )


def _shard_tables(
    blueprint: Blueprint, layout: Layout, read: ReadChunk | None
) -> tuple["ShardedTables | None", tuple[TablePlacement, ...]]:
    """Over all ranks of the world, filled."""
    if not blueprint.tables:
        return None, ()
    # torchrec and fbgemm, seconds to import: a model without tables does without.
    from rtrain.parallel.embeddings import apply_tables

    kept = kept_beside_tables(
        blueprint, layout.parallel, layout.mesh, global_batch=layout.global_batch, blank=layout.blank
    )
    tables, placements = apply_tables(
        blueprint.tables,
        blueprint.features,
        layout.parallel,
        layout.sparse_optim,
        layout.device,
        local_world_size=layout.local_size,
        batch_per_rank=ceil_div(layout.global_batch, layout.mesh.world_size),
        memory_bytes_per_rank=left_for_tables(
            layout.memory_bytes,
            layout.parallel,
            layout.sparse_optim,
            layout.mesh,
            dense_parameters=parameters_of_ranks(blueprint.pieces, layout.parallel, layout.mesh),
            activations=kept,
        ),
        activations_bytes=max(kept),
        seed=layout.seed,
    )
    if read:
        tables.restore(read)
    else:
        tables.initialise()
    return tables, placements
