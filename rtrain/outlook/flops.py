"""What a forward pass computes and moves, piece by piece, found by a run without memory.

The run is that of `rtrain.parallel.activations`: fake tensors, a tensor rank's share of the weights, collectives that
nobody answers. FLOPs are those of torch's own formulas, `torch.utils.flop_counter`; bytes are what each kernel reads
and writes, as eager PyTorch runs them, one behind the other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from rtrain.mesh import Mesh, Parallel
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.nn.edges import bytes_along
from rtrain.parallel.activations import Blank, watched_pieces
from rtrain.parallel.stage import shapes
from rtrain.parallel.tensor import TensorRank

ATEN = torch.ops.aten
CPU_ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu
"""Which torch's counter has no formula for; its arguments are those of the GPU's."""
ALONG = torch.ops.rtrain.along
BATCHED = (ATEN.bmm, ATEN.baddbmm)
MAKES_NO_KERNEL = (ATEN.empty, ATEN.new_empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty_strided)
BACKWARD = 2
"""Times the forward pass: gradients of what goes in, and of the weights."""
ATTENTION_BACKWARD = 2.5
"""Times the forward pass of fused attention, whose backward pass makes the scores again: five products after two."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One call that a device runs."""

    kind: Literal["product", "attention", "spread", "other"]
    """Spread: a symmetric sparse matrix times vectors, of which backward is the same call once."""
    bfloat16: bool
    """Whether what it takes is of 16 bits."""
    model_flops: float
    """As is customary: of causal attention all tokens with all."""
    flops: float
    """That are done: of causal attention half."""
    bytes: float
    """Read and written."""
    products: float = 1.0
    """That one call does: more than 1 of a batched product."""

    @property
    def size(self) -> float:
        """The edge of the cube that does as many FLOPs for each number it moves: of [m, k] and [k, n] the harmonic mean
        of m, k and n. Many products in a call fill a device as one of as many FLOPs does."""
        numbers = self.bytes / (2 if self.bfloat16 else 4)
        return float(1.5 * self.flops / numbers * self.products ** (1 / 3)) if numbers else 0.0


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One piece's forward pass of one microbatch on one tensor rank."""

    kernels: tuple[Kernel, ...]
    """In their order."""
    exchanged: tuple[tuple[str, int], ...]
    """Collectives of tensor ranks: gather, scatter or reduce, and the bytes of the whole tensor."""
    parameters: int
    """Elements of its weights on this rank, before ZeRO divides them."""
    saved_bytes: int
    """That autograd keeps for backward, without what the piece is given."""
    received_bytes: int
    """That the piece before gives."""

    @property
    def model_flops(self) -> float:
        """All its kernels'."""
        return sum(kernel.model_flops for kernel in self.kernels)

    @property
    def bytes(self) -> float:
        """All its kernels'."""
        return sum(kernel.bytes for kernel in self.kernels)


def count(
    blueprint: Blueprint, parallel: Parallel, mesh: Mesh, *, rows: int, global_batch: int, blank: Blank
) -> tuple[Counted, ...]:
    """Each piece of the blueprint, in its order, on `rows` rows. Pieces that are alike are run once.

    Raises:
        NotCounted: of data whose size only open data tell, and a model that asks for numbers themselves.
    """
    alike, which = distinct(blueprint.pieces)
    found: list[tuple[list[Kernel], list[tuple[str, int]]]] = [([], []) for _ in alike]
    at = 0

    @contextmanager
    def watch(number: int) -> Iterator[None]:
        nonlocal at
        at = number
        with _Watched(found[number][0]):
            yield

    passed = watched_pieces(
        replace(blueprint, pieces=alike), parallel, mesh, rows=rows, global_batch=global_batch, blank=blank,
        watch=watch, told=lambda kind, size: found[at][1].append((kind, size)),
    )  # fmt: skip
    counted = [
        Counted(
            kernels=tuple(kernels),
            exchanged=tuple(exchanged),
            parameters=_parameters(piece, mesh.tensor),
            saved_bytes=stage.saved,
            received_bytes=stage.received,
        )
        for piece, (kernels, exchanged), stage in zip(alike, found, passed, strict=True)
    ]
    return tuple(counted[n] for n in which)


FEW, MANY = 2, 4
"""Rows from which others are extrapolated; one row alone lies in memory without gaps, and spares copies."""


def extrapolated(few: Counted, many: Counted, rows: int) -> Counted:
    """A piece on `rows` rows, from what it does on `FEW` and `MANY`: all that it does grows by as much with each row.

    Of a decoder that is so to the byte; not of losses that hold each row against all others.
    """

    def at(first: float, second: float) -> float:
        return first + (second - first) * (rows - FEW) / (MANY - FEW)

    kernels = tuple(
        replace(
            low,
            model_flops=at(low.model_flops, high.model_flops),
            flops=at(low.flops, high.flops),
            bytes=at(low.bytes, high.bytes),
            products=at(low.products, high.products),
        )
        for low, high in zip(few.kernels, many.kernels, strict=True)
    )
    sizes = zip(few.exchanged, many.exchanged, strict=True)
    return Counted(
        kernels=kernels,
        exchanged=tuple((kind, int(at(low, high))) for (kind, low), (_, high) in sizes),
        parameters=few.parameters,
        saved_bytes=int(at(few.saved_bytes, many.saved_bytes)),
        received_bytes=int(at(few.received_bytes, many.received_bytes)),
    )


def distinct(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], list[int]]:
    """Pieces that differ from the one before them by more than their name; and of each piece, which of them it is."""
    alike: list[Piece] = []
    which = []
    for piece in pieces:
        if not alike or replace(piece, name=alike[-1].name) != alike[-1]:
            alike.append(piece)
        which.append(len(alike) - 1)
    return tuple(alike), which


def _parameters(piece: Piece, tensor: int) -> int:
    rank = TensorRank(None, 0, tensor)
    return sum(prod(rank.place(piece, name, shape, writes=False).sizes) for name, shape in shapes(piece).items())


class _Watched(TorchDispatchMode):
    """Writes down every kernel that is asked for."""

    def __init__(self, kernels: list[Kernel]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._kernels = kernels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call itself."""
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        taken = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        given = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if packet not in MAKES_NO_KERNEL and (func._schema.is_mutable or not _is_view(taken, given)):
            self._kernels.append(_kernel(packet, taken, given, args, kwargs or {}, out))
        return out


def _is_view(taken: list[Tensor], given: list[Tensor]) -> bool:
    storages = {x.untyped_storage()._cdata for x in taken}
    return all(x.untyped_storage()._cdata in storages for x in given)


def _kernel(
    packet: Any, taken: list[Tensor], given: list[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> Kernel:
    moved = sum(x.nbytes for x in (*taken, *given))
    sixteen = bool(taken) and taken[0].dtype in (torch.bfloat16, torch.float16)
    if packet is ATEN.embedding:  # reads of the weights what it looks up
        moved = 2 * given[0].nbytes + taken[1].nbytes
    if packet is ALONG:
        done = 2.0 * len(taken[1]) * taken[3].shape[1]  # so few for each byte that the bytes alone bound it
        return Kernel(kind="spread", bfloat16=False, model_flops=done, flops=0.0, bytes=bytes_along(*taken[1:]))
    if packet is CPU_ATTENTION or ("attention" in packet.__name__ and packet in flop_registry):
        query, key, value = args[:3]
        flops = float(cast(int, sdpa_flop_count(query.shape, key.shape, value.shape)))
        causal = kwargs.get("is_causal", args[4] if len(args) > 4 else False)
        done = flops / 2 if causal is True else flops
        return Kernel(kind="attention", bfloat16=sixteen, model_flops=flops, flops=done, bytes=moved)
    formula: Callable[..., Any] | None = flop_registry.get(packet)
    if formula is None:
        return Kernel(kind="other", bfloat16=sixteen, model_flops=0.0, flops=0.0, bytes=moved)
    flops = float(formula(*args, **kwargs, out_val=out))
    many = float(given[0].shape[0]) if packet in BATCHED else 1.0
    return Kernel(kind="product", bfloat16=sixteen, model_flops=flops, flops=flops, bytes=moved, products=many)
