"""How a dense model may be cut: ordered pieces for a pipeline, and a cut of each weight for tensor parallelism.

A model gives its `Piece`s and knows nothing of ranks; `rtrain.parallel` does the cutting.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rtrain.errors import ConfigError

Fill = Callable[[Tensor, torch.Generator], Tensor]
"""Fills a fresh tensor, and gives it back."""
Cut = Literal["column", "kv", "row", "vocab", "replicated"]
"""column: outputs are divided (dim 0 of a Linear's weight, and its bias); kv: the same by key-value heads, or
replicated where there are more ranks than such heads; row: inputs are divided (dim 1); vocab: rows of an embedding or
of the head (dim 0); replicated: whole on every tensor rank."""

CUT_DIM: Mapping[Cut, int] = {"column": 0, "kv": 0, "vocab": 0, "row": 1}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the model that stays on one pipeline stage: what the piece before gives goes in, then `takes`."""

    name: str
    """Prefix of its tensors' logical names."""
    build: Callable[[], nn.Module]
    """Makes the module, on the default device of the moment."""
    cost: float
    """FLOPs of a forward pass for each token; stages are balanced by it."""
    takes: tuple[str, ...] = ()
    """Names of what it takes besides, in its arguments' order: a batch's `inputs`, and what tables give (`nn.tables`).
    """
    fill: Callable[[str], Fill] | None = None
    """Logical name of a parameter -> what fills it, the same at every layout; none: `build` draws all weights itself,
    from the run's seed, so that every rank holds the piece whole."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    """Parameter name inside the piece -> its cut; what is not named is replicated."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Parameter name inside the piece -> logical name of an earlier piece's parameter that it is."""
    kv_heads: int = 1
    """Key-value heads that the cut `kv` divides."""
    kv: tuple[str, ...] = ()
    """Submodules with such heads: of `wq` and `wk`, and with a `kv_chosen` that says which of them a rank uses."""
    enter: tuple[str, ...] = ()
    """Submodules that need all rows or tokens: their inputs are gathered over the tensor ranks."""
    leave: tuple[str, ...] = ()
    """Submodules whose output is a partial sum: it is summed over the tensor ranks, and dealt out again."""
    norms: tuple[str, ...] = ()
    """Layer norms over what the tensor ranks divide, such as all heads side by side: moments are summed over them."""

    def cut_dim(self, parameter: str, ranks: int) -> int | None:
        """The dim along which `ranks` tensor ranks divide a parameter; none: it is whole on each."""
        cut = self.cuts.get(parameter, "replicated")
        if ranks == 1 or cut == "replicated" or (cut == "kv" and self.kv_heads < ranks):
            return None
        return CUT_DIM[cut]


def chain(
    modules: Iterable[nn.Module], takes: Iterable[tuple[str, ...]], given: Any, named: Mapping[str, Tensor],
    *, call: Callable[..., Any] = lambda module, *taken: module(*taken),
) -> Any:  # fmt: skip
    """What the last of consecutive pieces gives: each takes what the one before gave, and its `takes` of `named`.

    `call`: how a piece is called.
    """
    for module, names in zip(modules, takes, strict=True):
        if missing := [name for name in names if name not in named]:
            raise ConfigError(
                f"a piece ({type(module).__name__}) takes {', '.join(map(repr, missing))}, which neither batches nor "
                f"tables give. They give {', '.join(named) or 'nothing'}"
            )
        given = call(module, *(given if isinstance(given, tuple) else (given,)), *(named[name] for name in names))
    return given


def nest(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into another, at a dotted name whose modules in between are made."""
    *path, last = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module(last, module)


def drawn(piece: Piece, seed: int, *, first: str) -> nn.Module:
    """A piece with the weights that it draws itself: the same at every layout, whatever else has drawn numbers.

    The piece that is called as the `first` of the model draws from the seed itself, the others from one of their own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed if piece.name == first else seed_of(seed, piece.name))
        return piece.build()


def seed_of(seed: int, name: str) -> int:
    """A seed of its own for each logical name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def balance(costs: Sequence[float], stages: int) -> list[int]:
    """Pieces of each stage, in order, so that the costliest stage is as cheap as can be; every stage has one at least.

    Raises:
        ValueError: more stages than pieces.
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ValueError(f"{count} pieces cannot fill {stages} stages")
    upto = [0.0]
    for cost in costs:
        upto.append(upto[-1] + cost)
    # best[s][n]: the cheapest worst stage when the first n pieces fill s stages, and where the last one begins.
    best = [[(float("inf"), 0)] * (count + 1) for _ in range(stages + 1)]
    best[0][0] = (0.0, 0)
    for s in range(1, stages + 1):
        for n in range(s, count + 1):
            best[s][n] = min((max(best[s - 1][k][0], upto[n] - upto[k]), k) for k in range(s - 1, n))
    sizes = []
    end = count
    for s in range(stages, 0, -1):
        begin = best[s][end][1]
        sizes.append(end - begin)
        end = begin
    return sizes[::-1]
