"""Pieces of a dense model, built as this rank's share: tensor shares of their weights, the stages of a pipeline."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtrain.mesh import Mesh, Parallel
from rtrain.models.decoder import Decoder
from rtrain.models.plan import Piece
from rtrain.parallel.chunks import Place
from rtrain.parallel.pipeline import pieces_of_stages, stages_of_ranks
from rtrain.parallel.tensor import TensorRank


class Stage(nn.Module):
    """Consecutive pieces of the model, one after the other."""

    def __init__(self, pieces: Sequence[nn.Module]):
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor) -> Tensor:
        """What the last piece gives."""
        for piece in self.pieces:
            x = piece(x)
        return x


def stages_of_rank(config: Decoder, parallel: Parallel, mesh: Mesh, rank: int) -> list[tuple[Piece, ...]]:
    """The pieces of each of a rank's stages."""
    numbers = stages_of_ranks(parallel.schedule, mesh.pipeline) if mesh.pipeline > 1 else [[0]]
    stages = pieces_of_stages(config.pieces(), sum(len(n) for n in numbers))
    return [stages[n] for n in numbers[mesh.coordinates(rank)["pipeline"]]]


def build_stages(
    stages: Sequence[Sequence[Piece]], tensor: TensorRank, device: torch.device, *, writes: bool
) -> tuple[nn.ModuleList, dict[str, Place]]:
    """The modules of a rank's stages, not yet filled, and where each parameter lies in the logical model.

    Weights are never whole: shapes are taken from the meta device, shares are allocated.
    `writes`: whether this is the rank of its data group that writes checkpoints.
    """
    modules = nn.ModuleList()
    places: dict[str, Place] = {}
    known: dict[str, nn.Parameter] = {}
    for s, pieces in enumerate(stages):
        built = []
        for p, piece in enumerate(pieces):
            with torch.device("meta"):
                module = piece.build()
            for name, parameter in list(module.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                shared = piece.shared.get(name)
                if shared is not None:
                    setattr(module.get_submodule(owner), leaf, known[shared])
                    continue
                place = tensor.place(piece, name, tuple(parameter.shape), writes=writes)
                share = nn.Parameter(torch.empty(place.sizes, device=device))
                setattr(module.get_submodule(owner), leaf, share)
                known[place.name] = share
                places[f"{s}.pieces.{p}.{name}"] = place
            tensor.connect(piece, module)
            built.append(module)
        modules.append(Stage(built))
    return modules, places


@torch.no_grad()
def initialise(modules: nn.Module, places: dict[str, Place], config: Decoder, seed: int) -> None:
    """Fill every parameter with its share of what (seed, logical name) gives: the same model at every layout."""
    for name, parameter in modules.named_parameters():
        place = places[name]
        digest = hashlib.sha256(f"{seed}:{place.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
        fresh = config.initialise(place.name)(torch.empty(place.shape), generator)
        cut = tuple(slice(o, o + n) for o, n in zip(place.offsets, place.sizes, strict=True))
        parameter.copy_(fresh[cut])


def parameters_of_rank(config: Decoder, parallel: Parallel, mesh: Mesh, rank: int) -> int:
    """Elements of the weights that a rank holds before ZeRO divides them; no process group needed."""
    tensor = TensorRank(None, mesh.coordinates(rank)["tensor"], mesh.tensor)
    total = 0
    for piece in (p for stage in stages_of_rank(config, parallel, mesh, rank) for p in stage):
        with torch.device("meta"):
            module = piece.build()
        for name, parameter in module.named_parameters():
            if name not in piece.shared:
                total += torch.Size(tensor.place(piece, name, tuple(parameter.shape), writes=False).sizes).numel()
    return total
