"""Pieces of a dense model, built as this rank's share: tensor shares of their weights, the stages of a pipeline."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from rtrain.mesh import ONE_STAGE_A_RANK, Mesh, Parallel, PipelineSchedule, Precision
from rtrain.models.plan import Piece, balance, chain, drawn, seed_of
from rtrain.parallel.chunks import Place
from rtrain.parallel.tensor import TensorRank


class Stage(nn.Module):
    """Consecutive pieces of the model, one after the other."""

    def __init__(
        self,
        pieces: Sequence[nn.Module],
        takes: Sequence[tuple[str, ...]],
        device: str = "cpu",
        precision: Precision = "float32",
        *,
        again: int = 0,
    ):
        """`device`: its type; `precision`: as `Parallel.precision`; `again`: so many of the first pieces do their
        forward pass again in backward."""
        super().__init__()
        self.pieces = nn.ModuleList(pieces)
        self.takes = tuple(takes)
        self.device, self.rounds = device, precision == "bfloat16"
        self._again = frozenset(self.pieces[:again])

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        """What the last piece gives of what the stage before has `given`, and of whatever the pieces take by name."""
        first = tuple(_ContiguousGradient.apply(x) for x in given)  # type: ignore[no-untyped-call]
        if not (self.rounds and self.training):
            return chain(self.pieces, self.takes, first, named, call=self._call)
        # In here rather than around the wrapping: DeepSpeed's engine turns off what it was not itself told of.
        with torch.autocast(self.device, torch.bfloat16):
            out = chain(self.pieces, self.takes, first, named, call=self._call)
        return tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()

    def _call(self, piece: nn.Module, *taken: Any) -> Any:
        """The pass that is done again draws the same numbers and rounds alike: torch puts back what it was done in."""
        if piece in self._again and self.training and torch.is_grad_enabled():
            return checkpoint(piece, *taken, use_reentrant=False, preserve_rng_state=True)
        return piece(*taken)


class _ContiguousGradient(torch.autograd.Function):
    """What crosses between stages lies in one piece, also as its gradient: torch receives into nothing else.

    Where a stage begins by putting its input beside something else, autograd gives a slice as the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def stages_of_ranks(schedule: PipelineSchedule, ranks: int) -> list[list[int]]:
    """Stage numbers of each pipeline rank: one each, or two for the schedules that interleave (a V for ZBV)."""
    if schedule in ONE_STAGE_A_RANK:
        return [[r] for r in range(ranks)]
    if schedule == "zbv_zero_bubble":
        return [[r, 2 * ranks - 1 - r] for r in range(ranks)]
    return [[r, r + ranks] for r in range(ranks)]


def pieces_of_stages(pieces: Sequence[Piece], stages: int) -> list[tuple[Piece, ...]]:
    """The pieces of each stage, balanced by cost."""
    at = 0
    found = []
    for count in balance([p.cost for p in pieces], stages):
        found.append(tuple(pieces[at : at + count]))
        at += count
    return found


def cut_into_stages(pieces: Sequence[Piece], parallel: Parallel, mesh: Mesh) -> list[list[tuple[Piece, ...]]]:
    """Of each pipeline rank, the pieces of each of its stages."""
    numbers = stages_of_ranks(parallel.schedule, mesh.pipeline) if mesh.pipeline > 1 else [[0]]
    stages = pieces_of_stages(pieces, sum(len(n) for n in numbers))
    return [[stages[n] for n in of_rank] for of_rank in numbers]


def build_stages(
    stages: Sequence[Sequence[Piece]],
    tensor: TensorRank,
    device: torch.device,
    *,
    precision: Precision = "float32",
    seed: int,
    first: str,
    keeps: str = "",
    writes: bool,
) -> tuple[nn.ModuleList, dict[str, Place]]:
    """The modules of a rank's stages, and where each parameter lies in the logical model.

    Weights that a piece's `fill` gives are not there yet, and never whole: shapes are taken from the meta device,
    shares are allocated. `first`: name of the model's first piece. `keeps`: name of the one piece whose activations
    are kept for backward; none: those of all. `writes`: whether this is the rank of its data group that writes
    checkpoints.
    """
    modules = nn.ModuleList()
    places: dict[str, Place] = {}
    known: dict[str, nn.Parameter] = {}
    for s, pieces in enumerate(stages):
        built = []
        for p, piece in enumerate(pieces):
            module = drawn(piece, seed, first=first).to(device) if piece.fill is None else shaped(piece)
            for name, parameter in list(module.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                shared = piece.shared.get(name)
                if shared is not None:
                    setattr(module.get_submodule(owner), leaf, known[shared])
                    continue
                place = tensor.place(piece, name, tuple(parameter.shape), writes=writes)
                if piece.fill is not None:
                    parameter = nn.Parameter(torch.empty(place.sizes, device=device))
                elif place.sizes != place.shape:
                    parameter = nn.Parameter(parameter.detach()[place.cut].clone())
                setattr(module.get_submodule(owner), leaf, parameter)
                known[place.name] = parameter
                places[f"{s}.pieces.{p}.{name}"] = place
            tensor.connect(piece, module)
            built.append(module)
        again = sum(piece.name != keeps for piece in pieces) if keeps else 0
        modules.append(Stage(built, [piece.takes for piece in pieces], device.type, precision, again=again))
    return modules, places


class _NothingDrawn(TorchFunctionMode):
    """Leaves out first values, which the meta device has no use for: its normal draws import a second of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def shaped(piece: Piece) -> nn.Module:
    """The piece's module with shapes alone; no weights are made."""
    with torch.device("meta"), _NothingDrawn():
        return piece.build()


@torch.no_grad()
def initialise(
    modules: nn.ModuleList, places: Mapping[str, Place], stages: Sequence[Sequence[Piece]], seed: int
) -> None:
    """Fill every parameter with its share of what (seed, logical name) gives: the same model at every layout."""
    for s, pieces in enumerate(stages):
        for p, piece in enumerate(pieces):
            if piece.fill is None:
                continue
            for name, parameter in modules.get_submodule(f"{s}.pieces.{p}").named_parameters():
                if name in piece.shared:
                    continue
                place = places[f"{s}.pieces.{p}.{name}"]
                generator = torch.Generator().manual_seed(seed_of(seed, place.name))
                parameter.copy_(piece.fill(place.name)(torch.empty(place.shape), generator)[place.cut])


def parameters_of_ranks(pieces: Sequence[Piece], parallel: Parallel, mesh: Mesh) -> list[int]:
    """Elements of the weights that each rank holds before ZeRO divides them; no process group needed."""
    stages = cut_into_stages(pieces, parallel, mesh)
    whole = {piece.name: shapes(piece) for piece in pieces}
    held: dict[tuple[int, int], int] = {}  # the same on all data ranks, of which there may be thousands
    for p, t in product(range(mesh.pipeline), range(mesh.tensor)):
        rank = TensorRank(None, t, mesh.tensor)
        held[p, t] = sum(
            prod(rank.place(piece, name, shape, writes=False).sizes)
            for stage in stages[p]
            for piece in stage
            for name, shape in whole[piece.name].items()
        )
    where = (mesh.coordinates(rank) for rank in range(mesh.world_size))
    return [held[at["pipeline"], at["tensor"]] for at in where]


def shapes(piece: Piece) -> dict[str, tuple[int, ...]]:
    """Parameter inside the piece -> shape of the whole of it; no weights are made. Without what it shares."""
    named = shaped(piece).named_parameters()
    return {name: tuple(weight.shape) for name, weight in named if name not in piece.shared}
