"""What a training step keeps on each rank besides weights and optimizers, found by a run without memory.

Each stage goes forward once under torch's fake tensors (shapes and storages, no numbers), with its share of the weights
and collectives that nobody answers, and autograd is asked what it keeps: each storage once, weights left out. Kernels
are those of the CPU: attention keeps queries, keys, values and its output, as flash attention does on a GPU.

Not counted: what backward and the optimizer take for a moment, buffers of collectives, what DeepSpeed and TorchRec keep
for themselves (reduce buckets, ids that were exchanged), and the batch that is read ahead. Lists count as long as can
be, and what is chosen by numbers as large (`at_most`), so a batch of shorter or of equal ones takes less.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rtrain.data.cursor import largest_share
from rtrain.data.protocol import AnyBatch, IdBatch, NotCounted
from rtrain.errors import one_line
from rtrain.mesh import Dealt, Mesh, Parallel, rows_of_stages
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.nn.tables import BESIDE, VECTORS, WEIGHTS, mask, sequence
from rtrain.parallel.at_most import AtMost
from rtrain.parallel.groups import Groups
from rtrain.parallel.in_flight import in_flight
from rtrain.parallel.linear import linear_of
from rtrain.parallel.ranks import MeshRanks
from rtrain.parallel.saved import Saved
from rtrain.parallel.stage import Stage, build_stages, cut_into_stages, stages_of_ranks
from rtrain.parallel.tensor import TensorRank
from rtrain.rounding import ceil_div

Blank = Callable[[int, int], AnyBatch]
"""Rows of a rank and of the global batch -> `data.protocol.Data.blank`."""
Watch = Callable[[int], AbstractContextManager[Any]]
"""Number of a stage -> what is entered around its forward pass, and of the last also around the loss."""
Told = Callable[[str, int], None]
"""Hears of each collective of tensor ranks: gather, scatter or reduce, and the bytes of the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes on one rank, at the moment of a step at which they are most."""

    batch: int
    """What the rank reads, without its ids."""
    ids: int
    """That are looked up."""
    looked_up: int
    """Vectors of the tables."""
    carried: int
    """Vectors where they are carried to, and their gradients."""
    saved: int
    """By autograd for backward, of all microbatches in flight; and what one piece does again in it, the largest."""
    buffers: int
    """Of a pipeline: what stages receive, of every microbatch, and what they gave, of those in flight."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.ids + self.looked_up + self.beside_tables

    @property
    def beside_tables(self) -> int:
        """All but ids and looked-up vectors, which TorchRec's planner counts itself."""
        return self.batch + self.carried + self.saved + self.buffers


def kept_of_ranks(
    blueprint: Blueprint, parallel: Parallel, mesh: Mesh, *, global_batch: int, blank: Blank
) -> list[Kept]:
    """What each rank keeps; no process group needed. One forward a stage, however many ranks there are.

    `blank`: see `data.protocol.Data`. Of a model or objective that chooses by numbers it is an upper bound (`at_most`).

    Raises:
        NotCounted: of data whose size only open data tell, and a model that asks for numbers themselves.
    """
    with _without_numbers():
        of_stage = _of_pipeline_ranks(blueprint, parallel, mesh, global_batch, blank)
    return [of_stage[mesh.coordinates(rank)["pipeline"]] for rank in range(mesh.world_size)]


def watched_pieces(
    blueprint: Blueprint, parallel: Parallel, mesh: Mesh, *, rows: int, global_batch: int, blank: Blank,
    watch: Watch, told: Told,
) -> "list[Passed]":  # fmt: skip
    """Each piece's forward pass on so many rows, as a tensor rank of `mesh` does it: as `kept_of_ranks`, a stage each.

    Raises:
        NotCounted: as `kept_of_ranks`.
    """
    with _without_numbers():
        batch = blank(rows, global_batch).padded(rows, blueprint.longest)
        named = _looked_up(blueprint, batch, rows)
        # A piece apart from the one whose weight it shares has one of its own: it computes the same.
        apart: list[list[tuple[Piece, ...]]] = [[(replace(piece, shared={}),)] for piece in blueprint.pieces]
        alone = replace(mesh, pipeline=len(apart))
        one_each = replace(parallel, schedule="gpipe", pipeline=len(apart), recompute="nothing")
        inputs = {**batch.inputs, **named}
        return _run(blueprint, apart, one_each, alone, inputs, batch.target, watch=watch, told=told)


@contextmanager
def _without_numbers() -> Iterator[None]:
    try:
        with FakeTensorMode(), AtMost(), torch.enable_grad():
            yield
    except NotCounted:
        raise
    except Exception as error:  # whatever a user's module does that cannot be done without numbers
        raise NotCounted(f"a forward pass without numbers fails ({one_line(error)})") from error


def kept_beside_tables(
    blueprint: Blueprint, parallel: Parallel, mesh: Mesh, *, global_batch: int, blank: Blank
) -> list[int]:
    """What tables cannot have on each rank, as `plan` places them: nothing where it is not counted."""
    try:
        kept = kept_of_ranks(blueprint, parallel, mesh, global_batch=global_batch, blank=blank)
    except NotCounted:
        return [0] * mesh.world_size
    return [of_rank.beside_tables for of_rank in kept]


def _of_pipeline_ranks(
    blueprint: Blueprint, parallel: Parallel, mesh: Mesh, global_batch: int, blank: Blank
) -> list[Kept]:
    count, ranks = parallel.microbatches, mesh.pipeline
    share = largest_share(global_batch, mesh.readers(blueprint.dealt))
    rows = share if blueprint.tables and ranks == 1 else rows_of_stages(share, parallel)
    batch = blank(rows, global_batch).padded(rows, blueprint.longest)
    looked_up = _looked_up(blueprint, batch, ceil_div(rows, ranks))
    named = {name: _as_leaf(x.new_empty(rows, *x.shape[1:])) for name, x in looked_up.items()}
    part = {name: x.chunk(count)[0] for name, x in {**batch.inputs, **named}.items()}
    everywhere = cut_into_stages(blueprint.pieces, parallel, mesh)
    stages = _run(blueprint, everywhere, parallel, mesh, part, batch.target.chunk(count)[0])
    ids = _bytes(_tensors(cast(IdBatch, batch).ids)) if blueprint.tables else 0
    found = []
    for rank, of_rank in enumerate(everywhere):
        takes = {name for pieces in of_rank for piece in pieces for name in piece.takes}
        here = [x for name, x in named.items() if name in takes]
        carried = _bytes(here) * (1 if ranks > 1 else 0) + _bytes(x for x in here if x.requires_grad)
        own = [stages[n] for n in (stages_of_ranks(parallel.schedule, ranks)[rank] if ranks > 1 else [0])]
        held = in_flight(parallel.schedule, ranks, rank, count) if ranks > 1 else {(0,), (1,)}
        buffers = count * sum(s.received + s.sent for s in own) + _most(held, [s.given for s in own])
        found.append(
            Kept(
                batch=_bytes(_tensors(batch)) - ids,
                ids=ids,
                looked_up=_bytes(looked_up.values()),
                carried=carried,
                saved=_most(held, [s.saved for s in own], [s.again for s in own]),
                buffers=buffers if ranks > 1 else 0,
            )
        )
    return found


def _most(held: Collection[tuple[int, ...]], of_stages: list[int], more: Sequence[int] = (0, 0)) -> int:
    """Of all that there is at some time, the most; `held`: as `in_flight`; `more`: of a stage that goes backward."""
    found = 0
    for at in held:
        here = sum(n * size for n, size in zip(at, of_stages, strict=True))
        less = [(*at[:s], n - 1, *at[s + 1 :]) for s, n in enumerate(at)]  # behind the backward pass of each stage
        found = max(found, here, *(here + more[s] for s, behind in enumerate(less) if behind in held))
    return found


@dataclass(frozen=True)
class Passed:
    """Bytes of one microbatch's forward pass through a stage."""

    saved: int
    again: int
    """At most more than that at a time of backward, where pieces do their forward pass again."""
    received: int
    """From the stage before."""
    sent: int
    """To the stage behind, whose gradient comes back."""
    given: int
    """Of what it gives, what is counted nowhere else."""


def _run(
    blueprint: Blueprint,
    everywhere: list[list[tuple[Piece, ...]]],
    parallel: Parallel,
    mesh: Mesh,
    part: Mapping[str, Tensor],
    target: Tensor,
    *,
    watch: Watch = lambda number: nullcontext(),
    told: Told = lambda kind, size: None,
) -> list[Passed]:
    """All stages, one behind the other, and the loss with the last."""
    numbers = stages_of_ranks(parallel.schedule, mesh.pipeline) if mesh.pipeline > 1 else [[0]]
    where = {n: (rank, at) for rank, of in enumerate(numbers) for at, n in enumerate(of)}
    given: tuple[Tensor, ...] = ()
    found = []
    tensor = _SilentRank(mesh, blueprint.dealt, told)
    modules = {rank: _built(blueprint, stages, parallel, tensor) for rank, stages in enumerate(everywhere)}
    ranks = _SilentRanks(mesh, blueprint.dealt, tensor)
    for number in range(len(where)):
        rank, at = where[number]
        stage, last = cast(Stage, modules[rank][at]), number + 1 == len(where)
        received = tuple(_as_leaf(x.detach().clone()) for x in given)
        keeps = Saved(leave_out=[*stage.parameters(), *stage.buffers(), *part.values(), target, *received])
        with linear_of(parallel), watch(number), keeps.watching(stage.pieces):
            out = stage(*received, **part)
            if last:
                blueprint.objective.loss(out, target, ranks)
        given = out if isinstance(out, tuple) else (out,)
        again = len(stage.pieces) - last if parallel.recompute == "pieces" else 0
        beside = _bytes(keeps.beside(given, again))
        found.append(Passed(*keeps.bytes(again), _bytes(received), 0 if last else _bytes(given), beside))
    return found


def _built(
    blueprint: Blueprint, stages: list[tuple[Piece, ...]], parallel: Parallel, tensor: TensorRank
) -> nn.ModuleList:
    """The modules of a rank's stages, of its share of the weights; without the draws of first weights."""
    shaped = [[replace(p, fill=p.fill or _nothing) for p in pieces] for pieces in stages]
    cpu = torch.device("cpu")
    modules, _ = build_stages(
        shaped,
        tensor,
        cpu,
        precision=parallel.precision,
        seed=0,
        first=blueprint.pieces[0].name,
        writes=False,
    )
    for module in modules.modules():  # built on meta: parameters have come from there, buffers not yet
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty_like(buffer, device=cpu))
    return modules.train()


def _nothing(name: str) -> Any:
    raise AssertionError("nothing is filled here")


def _looked_up(blueprint: Blueprint, batch: AnyBatch, rows: int) -> dict[str, Tensor]:
    """What the tables give of so many of the batch's rows."""
    found: dict[str, Tensor] = {}
    for table in blueprint.tables:
        for feature in table.sequences:
            if feature not in blueprint.longest:
                raise NotCounted(f"{feature!r} is read as a sequence of any length; give it a max_length")
            longest = max(blueprint.longest[feature], cast(IdBatch, batch).ids.longest[feature])
            found[sequence(feature)] = _as_leaf(torch.empty(rows, longest, table.dim))
            found[mask(feature)] = torch.empty(rows, longest, dtype=torch.bool)
    single = sum(t.dim * len([f for f in t.features if f not in t.sequences]) for t in blueprint.tables if not t.beside)
    beside = BESIDE * sum(len(t.features) for t in blueprint.tables if t.beside)
    if blueprint.tables:
        found[VECTORS] = _as_leaf(torch.empty(rows, single))
    if beside:
        found[WEIGHTS] = _as_leaf(torch.empty(rows, beside))
    return found


def _as_leaf(x: Tensor) -> Tensor:
    return x.requires_grad_(x.is_floating_point())


def _tensors(of: Any) -> Iterator[Tensor]:
    """All that a batch is made of."""
    if isinstance(of, Tensor):
        yield of
    elif isinstance(of, Mapping) or is_dataclass(of):
        for value in (of if isinstance(of, Mapping) else vars(of)).values():
            yield from _tensors(value)


def _bytes(tensors: Any) -> int:
    """Each storage once."""
    storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}
    return sum(storage.nbytes() for storage in storages.values())


class _SilentRank(TensorRank):
    """The first of tensor ranks of which there are no others: what it is sent has no content."""

    def __init__(self, mesh: Mesh, dealt: Dealt, told: Told):
        super().__init__(None, 0, mesh.tensor, dealt)
        self._told = told

    def gather(self, out: Tensor, local: Tensor) -> None:
        """Nothing comes."""
        self._told("gather", out.nbytes)

    def scatter(self, out: Tensor, local: Tensor) -> None:
        """Nothing comes."""
        self._told("scatter", local.nbytes)

    def reduce(self, x: Tensor, by: Any = dist.ReduceOp.SUM) -> None:
        """Nothing comes."""
        self._told("reduce", x.nbytes)


class _SilentRanks(MeshRanks):
    """The same of the ranks that an objective knows."""

    def __init__(self, mesh: Mesh, dealt: Dealt, tensor: TensorRank):
        groups = Groups(
            mesh=mesh, rank=0, along=dict.fromkeys(("pipeline", "data", "tensor")), replica=None, stage=None
        )
        super().__init__(tensor, groups, dealt)

    def gather(self, rows: Tensor) -> Tensor:
        """Nothing comes."""
        return rows if self.data == 1 else rows.new_empty((self.data * rows.shape[0], *rows.shape[1:]))

    def most(self, rows: Tensor) -> int:
        """No other rank has more."""
        return len(rows)

    def exchange(self, blocks: Tensor) -> Tensor:
        """Nothing comes."""
        return torch.empty_like(blocks)
