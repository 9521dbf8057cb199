"""A step's seconds at a layout, part by part; what is counted once for many layouts is kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from rtrain.data.cursor import largest_share
from rtrain.mesh import ONE_STAGE_A_RANK, Mesh, Parallel, rows_of_stages
from rtrain.models.plan import balance
from rtrain.models.protocol import Blueprint
from rtrain.outlook import collectives, parts
from rtrain.outlook.flops import FEW, MANY, Counted, count, extrapolated
from rtrain.outlook.kernels import RTRAINS, Pass, Practice, add, pass_of
from rtrain.outlook.profile import Profile
from rtrain.parallel.placement import TablePlacement
from rtrain.parallel.stage import stages_of_ranks
from rtrain.rounding import ceil_div
from rtrain.run import Run

WIRE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step."""

    parts: Mapping[str, float]
    """Part -> seconds that it adds."""
    flops: float
    """Of the model, over all devices: three times a forward pass, whatever is computed again."""

    @property
    def seconds(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Stages:
    """One layout's stages: pieces [begin, end) of each stage of each pipeline rank, counted at its rows."""

    counted: tuple[Counted, ...]
    bounds: tuple[tuple[int, int], ...]
    """Of each stage, in the order of the model."""
    of_ranks: tuple[tuple[int, ...], ...]
    """Stage numbers of each pipeline rank."""
    recompute: bool = False
    """Whether all pieces but the last do their forward pass again in backward."""

    @cached_property
    def parameters(self) -> tuple[int, ...]:
        """Elements on each pipeline rank before ZeRO divides them."""
        return tuple(sum(c.parameters for c in self.pieces(rank)) for rank in range(len(self.of_ranks)))

    @cached_property
    def saved_bytes(self) -> tuple[int, ...]:
        """That each pipeline rank keeps of a microbatch which went through all its stages."""
        return tuple(
            sum(
                (0 if self._again(at) else self.counted[at].saved_bytes)
                + (self.counted[at].received_bytes if at > self.bounds[n][0] else 0)
                for n in of
                for at in range(*self.bounds[n])
            )
            for of in self.of_ranks
        )

    @cached_property
    def again_bytes(self) -> tuple[int, ...]:
        """At most, that each pipeline rank has in backward of a piece which goes forward again, beside those.

        What was kept of the model's last piece is free by then.
        """
        last = self.counted[-1].saved_bytes
        ends_here = [self.bounds[of[-1]][1] == len(self.counted) for of in self.of_ranks]
        most = [max((self.counted[at].saved_bytes for at in self._pieces_again(of)), default=0) for of in self.of_ranks]
        return tuple(max(0, n - last) if ends else n for n, ends in zip(most, ends_here, strict=True))

    @cached_property
    def received_bytes(self) -> tuple[int, ...]:
        """That each pipeline rank's stages are given of a microbatch."""
        return tuple(sum(self.counted[self.bounds[n][0]].received_bytes for n in of) for of in self.of_ranks)

    def _again(self, piece: int) -> bool:
        return self.recompute and piece + 1 < len(self.counted)

    def _pieces_again(self, stages: tuple[int, ...]) -> list[int]:
        return [at for n in stages for at in range(*self.bounds[n]) if self._again(at)]

    def pieces(self, rank: int) -> list[Counted]:
        """All that a pipeline rank has."""
        return [c for n in self.of_ranks[rank] for c in self.counted[slice(*self.bounds[n])]]


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Steps of one run's model and global batch on one kind of device, at any layout."""

    run: Run
    profile: Profile
    practice: Practice = RTRAINS
    _counted: dict[tuple[int, int, int], tuple[Counted, ...]] = field(default_factory=dict)
    _stages: dict[tuple[Any, ...], tuple[Stages, list[tuple[Pass, Pass]]]] = field(default_factory=dict)
    _passes: dict[tuple[Any, ...], list[tuple[Pass, Pass]]] = field(default_factory=dict)
    _bounds: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def stages(self, parallel: Parallel, mesh: Mesh) -> Stages:
        """The layout's stages, each counted at a microbatch's rows.

        Raises:
            NotCounted: as `flops.count`.
        """
        return self._staged(parallel, mesh)[0]

    def step(self, parallel: Parallel, mesh: Mesh, placed: Sequence[TablePlacement] = ()) -> Step:
        """One step. `placed`: as `parts.tables_s`.

        Raises:
            NotCounted: as `flops.count`.
            ConfigError: the device has no figure for a precision.
        """
        (stages, ranks), m, profile = self._staged(parallel, mesh), parallel.microbatches, self.profile
        forward, backward = max(ranks, key=lambda both: both[0].seconds + both[1].seconds)
        found = {name: m * (getattr(forward, name) + getattr(backward, name)) for name in _NAMES}
        if mesh.pipeline > 1:
            bubble_s = parts.bubble_s(parallel.schedule, [f.seconds for f, _ in ranks], [b.seconds for _, b in ranks])
            found["pipeline bubble"] = bubble_s / self.practice.chunks
            found["pipeline sends"] = self._sends_s(parallel, mesh, stages) * self.practice.chunks
        fullest = max(range(mesh.pipeline), key=stages.parameters.__getitem__)
        shared = parts.Shared(
            parameters=stages.parameters[fullest],
            pieces=len(stages.pieces(fullest)),
            forward_s=m * forward.seconds,
            backward_s=m * backward.seconds,
        )
        data = collectives.group(mesh.data, stride=mesh.tensor, devices_per_node=profile.devices_per_node)
        found["data ranks"] = parts.data_s(parallel, shared, data, profile, self.practice)
        found["optimizer"] = parts.optimizer_s(parallel, shared.parameters, mesh.data, profile)
        blueprint = self.blueprint
        if blueprint.tables:
            world = collectives.group(mesh.world_size, stride=1, devices_per_node=profile.devices_per_node)
            found["tables"] = parts.tables_s(
                blueprint.tables, placed, self.run.sparse_optim, global_batch=self.run.global_batch, world=world,
                profile=profile, wire_bytes=WIRE_BYTES[parallel.wire],
            )  # fmt: skip
            busy = found["compute"] + found["memory"] + found["tables"]
            asked = m * (forward.asked + backward.asked) + (0.0 if self.practice.graphs else profile.tables_host_s)
            found["host"] = max(found["host"], asked - busy)
        of_rows = 3 * sum(c.model_flops for c in stages.counted) * m * mesh.data * mesh.tensor
        rows = self._rows(parallel, mesh) * m * mesh.readers(blueprint.dealt)  # some of them only pad
        return Step(parts={_SAID.get(k, k): v for k, v in found.items()}, flops=of_rows * self.run.global_batch / rows)

    def _staged(self, parallel: Parallel, mesh: Mesh) -> tuple[Stages, list[tuple[Pass, Pass]]]:
        """The stages, and each pipeline rank's forward and backward pass of a microbatch."""
        key, again = self._key(parallel, mesh), parallel.recompute == "pieces"
        at = (*key, mesh.pipeline, parallel.schedule, again)
        if at not in self._stages:
            numbers = stages_of_ranks(parallel.schedule, mesh.pipeline) if mesh.pipeline > 1 else [[0]]
            bounds = self._bounds_of(sum(map(len, numbers)))
            of_numbers = tuple(map(tuple, numbers))
            stages = Stages(counted=self._count(key), bounds=bounds, of_ranks=of_numbers, recompute=again)
            passes = self._pass(key, again=again)
            of_ranks = [[passes[i] for n in of for i in range(*bounds[n])] for of in numbers]
            ranks = [(add(f for f, _ in of), add(b for _, b in of)) for of in of_ranks]
            self._stages[at] = stages, ranks
        return self._stages[at]

    @cached_property
    def blueprint(self) -> Blueprint:
        """The run's."""
        return self.run.blueprint

    def _rows(self, parallel: Parallel, mesh: Mesh) -> int:
        """Of a microbatch on a rank."""
        readers = mesh.readers(self.blueprint.dealt)
        dealt = ceil_div if self.practice.even else largest_share
        share = dealt(self.run.global_batch, readers)
        return ceil_div(rows_of_stages(share, parallel), parallel.microbatches)

    def _key(self, parallel: Parallel, mesh: Mesh) -> tuple[int, int, int]:
        tokens = self.blueprint.dealt == "tokens"  # whose loss holds no row against those of other ranks
        return mesh.tensor, 1 if tokens else mesh.data, self._rows(parallel, mesh)

    def _count(self, key: tuple[int, int, int]) -> tuple[Counted, ...]:
        if key in self._counted:
            return self._counted[key]
        tensor, data, rows = key
        if self.blueprint.dealt == "tokens" and rows not in (1, FEW, MANY):
            once: dict[int, Counted] = {}
            few, many = (self._count((tensor, data, n)) for n in (FEW, MANY))
            for low, high in zip(few, many, strict=True):
                if id(low) not in once:  # alike pieces are one object, and stay one
                    once[id(low)] = extrapolated(low, high, rows)
            self._counted[key] = tuple(once[id(low)] for low in few)
            return self._counted[key]
        run, mesh = self.run, Mesh(pipeline=1, data=data, tensor=tensor)
        at = replace(run.parallel, tensor=tensor, data=data, pipeline=1, microbatches=1, schedule="gpipe")
        self._counted[key] = count(
            self.blueprint, at, mesh, rows=rows, global_batch=run.global_batch, blank=run.data.blank
        )
        return self._counted[key]

    def _pass(self, key: tuple[int, int, int], *, again: bool) -> list[tuple[Pass, Pass]]:
        if (*key, again) not in self._passes:
            tensor = collectives.group(key[0], stride=1, devices_per_node=self.profile.devices_per_node)
            of, profile, precision = self._count(key), self.profile, self.run.parallel.precision
            many = Counter(id(c) for c in of)  # alike pieces are one object
            once: dict[tuple[int, bool], tuple[Pass, Pass]] = {}
            which = [(id(c), again and at + 1 < len(of)) for at, c in enumerate(of)]
            for c, (alike, does) in zip(of, which, strict=True):
                if (alike, does) not in once:
                    block = many[alike] > 1 or len(of) == 1
                    once[alike, does] = pass_of(c, profile, precision, tensor, self.practice, block=block, again=does)
            self._passes[*key, again] = [once[at] for at in which]
        return self._passes[*key, again]

    def _bounds_of(self, stages: int) -> tuple[tuple[int, int], ...]:
        if stages not in self._bounds:
            ends = [0]
            for size in balance([piece.cost for piece in self.blueprint.pieces], stages):
                ends.append(ends[-1] + size)
            self._bounds[stages] = tuple(pairwise(ends))
        return self._bounds[stages]

    def _sends_s(self, parallel: Parallel, mesh: Mesh, stages: Stages) -> float:
        """Of every microbatch, there and back; nothing runs beside it."""
        between = mesh.tensor * mesh.data >= self.profile.devices_per_node
        largest = max(stages.counted[begin].received_bytes for begin, _ in stages.bounds[1:])
        sent = collectives.send_s(largest, self.profile, between_nodes=between)
        return 2 * (parallel.microbatches + mesh.pipeline - 1) * sent * (1 if _one_stage(parallel) else 2)


def _one_stage(parallel: Parallel) -> bool:
    return parallel.schedule in ONE_STAGE_A_RANK


_SAID = {
    "compute": "products",
    "memory": "memory-bound kernels",
    "host": "waiting for the host",
    "tensor": "tensor ranks",
}
_NAMES = tuple(_SAID)
