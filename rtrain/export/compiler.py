"""The process that compiles an export: `python -m rtrain.export.compiler`, asked by `rtrain.export.compiled`.

What it made answers drawn inputs as torch's modules do, or it is not kept.
"""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtrain.data.blank import blank_rows
from rtrain.errors import RtrainError, one_line
from rtrain.export.artifact import Predictor
from rtrain.export.chosen import SAME, difference, largest
from rtrain.export.compiled import Compiled, key_of
from rtrain.export.program import FREE, Whole, first_line, shown

TRIED = (1, 2, 64, 1000)
"""Rows of calls that are compared."""


def main() -> None:
    """What the process does."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    try:
        for name in asked["modules"]:
            import_module(name)
        why = _compiled(asked)
    except RtrainError as error:
        why = one_line(error)
    print(json.dumps({"why": why}))


def _compiled(asked: Mapping[str, Any]) -> str:
    """Write the library; returns why there is none."""
    predictor = Predictor(asked["export"], program="eager", device=asked["device"])
    if key_of(predictor.head, asked["device"]) != asked["key"]:
        return "the export was written again meanwhile"
    lookup = predictor.lookup
    whole = lookup.whole.eval()
    named = {**lookup.tables, **lookup.given(blank_rows(predictor.schema, 2, 2))}
    some, axes = shown(whole, named)
    to = Path(asked["to"])
    dims: dict[str, Any] = {}
    shapes = tuple({at: dims.setdefault(name, torch.export.Dim(name)) for at, name in free.items()} for free in axes)
    try:
        with torch.no_grad():
            graph = torch.export.export(whole, some, dynamic_shapes={"given": shapes})
            torch._inductor.aoti_compile_and_package(graph, package_path=str(to), inductor_configs={"cpp.threads": 1})
    except Exception as error:  # of many kinds, of torch, the compiler and the model; none is a reason to lose a run
        return f"it cannot be compiled ({first_line(error)})"
    return _otherwise(whole, some, axes, to)


@torch.inference_mode()
def _otherwise(whole: Whole, some: tuple[Tensor, ...], axes: tuple[dict[int, str], ...], library: Path) -> str:
    """Why it is not to be trusted; empty: it answers as torch's modules do."""
    program = Compiled(library, whole.takes)
    ids = min(
        weight.shape[0] for name, weight in zip(whole.takes, some, strict=True) if name in whole.gathered.of_tables
    )
    draw = torch.Generator().manual_seed(0)
    apart = []
    for rows in TRIED:
        sizes = {name: rows if name == FREE else rows % 7 or 7 for free in axes for name in free.values()}
        given = {
            name: _drawn(like, free, sizes, ids, draw) if free else like
            for name, like, free in zip(whole.takes, some, axes, strict=True)
        }
        said = whole(*(given[name] for name in whole.takes))
        apart.append(difference(said, program(given)))
    most = largest(apart)
    return "" if most <= SAME else f"what was compiled answers otherwise, by {most:.1e} (allowed: {SAME:g})"


def _drawn(like: Tensor, free: Mapping[int, str], sizes: Mapping[str, int], ids: int, draw: torch.Generator) -> Tensor:
    """Of a kind and size: numbers, ids that each table has, or places that are real."""
    shape = [sizes[free[at]] if at in free else size for at, size in enumerate(like.shape)]
    if like.dtype.is_floating_point:
        found = torch.randn(shape, generator=draw, dtype=like.dtype)
    else:
        found = torch.randint(0, 2 if like.dtype == torch.bool else ids, shape, generator=draw).to(like.dtype)
    return found.to(like.device)


if __name__ == "__main__":
    main()
