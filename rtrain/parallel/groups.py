"""The process groups of a mesh: this rank's group along each axis, and the one that shares a replica."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch.distributed as dist

from rtrain.mesh import AXES, Axis, Mesh


@dataclass(frozen=True)
class Groups:
    """This rank's place in the mesh, with a group along each axis."""

    mesh: Mesh
    rank: int
    along: dict[Axis, Any]
    """Axis -> the process group of the ranks that differ from this one along that axis only."""
    replica: Any
    """The ranks of the same data coordinate: together they hold the model once."""
    stage: Any
    """The ranks of the same pipeline coordinate, by data and then by tensor coordinate: they hold the same stages."""

    def index(self, axis: Axis) -> int:
        """This rank's coordinate along an axis."""
        return self.mesh.coordinates(self.rank)[axis]

    def size(self, axis: Axis) -> int:
        """Ranks along an axis."""
        return self.mesh.degree(axis)

    def ranks(self, axis: Axis) -> list[int]:
        """Global ranks of this rank's group along an axis, in order."""
        return next(g for g in self.mesh.groups(axis) if self.rank in g)


def make_groups(mesh: Mesh) -> Groups:
    """All groups of the mesh; a collective, in which every rank makes every group in the same order."""
    rank = dist.get_rank()
    along: dict[Axis, Any] = {axis: _mine(mesh.groups(axis), rank) for axis in AXES}
    replicas = [[ranks[d] for ranks in mesh.groups("data")] for d in range(mesh.data)]
    stages = [[ranks[p] for ranks in mesh.groups("pipeline")] for p in range(mesh.pipeline)]
    for parts in (replicas, stages):
        assert sorted(chain.from_iterable(parts)) == list(range(mesh.world_size))
    return Groups(
        mesh=mesh,
        rank=rank,
        along=along,
        replica=_mine(replicas, rank),
        stage=_mine(stages, rank),
    )


def _mine(everyone: list[list[int]], rank: int) -> Any:
    found = None
    for ranks in everyone:
        # A single group of all ranks is the world's own: a second one would cost sockets and say nothing new.
        group = dist.group.WORLD if len(ranks) == dist.get_world_size() else dist.new_group(sorted(ranks))
        if rank in ranks:
            found = group
    return found
