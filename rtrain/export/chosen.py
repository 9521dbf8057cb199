"""Which program answers of an export: all are run on rows of the run, and the head names the fastest one.

    "program": {"kind": "compiled", "ms_1": 0.06, "ms_64": 0.2, "difference": 3e-7,
                "onnx": {"ms_1": 0.1, "ms_64": 0.4, "difference": 2e-7, "opset": 18},
                "eager": {"ms_1": 0.6, "ms_64": 0.9}}
    "program": {..., "onnx": {"why": "..."}}        of one that could not be compared
    "program": {"kind": "eager", "why": "..."}      where there was none to compare with

Times are of lookups and dense part of 1 and of 64 rows, one thread, the median of calls that alternate.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rtrain.batch import Batch
from rtrain.errors import ConfigError, RtrainWarning
from rtrain.export.artifact import LOOKS_UP, Predictor, library_of
from rtrain.export.compiled import Compiled, lacks_compiler
from rtrain.export.head import HEAD
from rtrain.export.lookup import Lookup
from rtrain.export.program import MAKES, OPSET, PROGRAM, Program, missing, write_program
from rtrain.export.weights import put
from rtrain.nn.tables import Table
from rtrain.scratch import Scratch
from rtrain.storage import Folder

SAME = 1e-5
"""Largest difference of an output, of one beyond 1 by its share: both sum the same float32 products in other orders."""
ROWS = 1024
"""Of the test split that are answered both ways."""
SIZES = (1, 64)
"""Rows of a call whose time is taken."""
CALLS = 100
"""Whose time is taken, of each size and program."""
WIDENED = 1 << 30
"""Bytes of tables kept in 16 bits that are widened to be measured; of more a run that trained would lack memory."""

INSTALL = "pip install 'rtrain[onnx]'"

Call = Callable[[Batch], Tensor]
Kind = Literal["onnx", "compiled"]
KINDS: tuple[Kind, ...] = ("onnx", "compiled")
"""All that are compared where nobody says which."""
NAMES: Mapping[Kind, str] = {"onnx": "ONNX", "compiled": "what was compiled"}


def refuse_program(kind: Kind) -> None:
    """Of a run that wants one whatever it is worth.

    Raises:
        ConfigError: something that it needs is not installed.
    """
    if lacking := _lacks(kind):
        raise ConfigError(f"handoff.program: {kind} cannot be had: {lacking}. Or set it to eager")


def choose(
    uri: str,
    kinds: Sequence[Kind],
    rows: pa.Table,
    *,
    must: bool = False,
    tables: Sequence[Table] = (),
    check: Callable[[], None] = lambda: None,
) -> None:
    """Say in the head of a finished export what answers of it, and put the program beside it where that is ONNX.

    Args:
        uri: the export.
        kinds: that are compared with torch's modules.
        rows: of the run's own, as the data hold them.
        must: whether it is one of `kinds` however fast that is.
        tables: the model's.
        check: as `rtrain.export.artifact.export`.

    Raises:
        ConfigError: it must be one of them, and none can be had, or all answer otherwise.
    """
    folder = Folder(uri)
    head = folder.read_json(HEAD)
    with Scratch("program") as scratch:
        stated = _compared(uri, head, kinds, rows, must, tables, scratch / PROGRAM)
        if stated["kind"] != "eager":
            head["format"] = max(LOOKS_UP, head["format"])
        if stated["kind"] == "onnx":
            head["files"] |= put(folder, PROGRAM, lambda to: shutil.move(scratch / PROGRAM, to), check)
    if must and "why" in stated:
        folder.discard(HEAD)
        wanted = " or ".join(kinds)
        raise ConfigError(f"handoff.program: {wanted} cannot be had: {stated['why']}. Set it to measured or eager")
    if "why" in stated:
        text = f"handoff.program: the export answers by torch's modules: {stated['why']}. Or set it to eager"
        warnings.warn(text, RtrainWarning, stacklevel=2)
    check()
    folder.write_json(HEAD, head | {"program": stated})


def _compared(
    uri: str,
    head: Mapping[str, Any],
    kinds: Sequence[Kind],
    rows: pa.Table,
    must: bool,
    tables: Sequence[Table],
    path: Path,
) -> dict[str, Any]:
    """What the head says; where it says ONNX the program is at `path`."""
    if why := _against(must, rows, tables):
        return {"kind": "eager", "why": why}
    predictor = Predictor(uri, program="eager")
    lookup = predictor.lookup
    batches = {size: list(_batches(predictor, rows, size)) for size in SIZES}
    every = [
        predictor.batch(rows, where="test", first_row=0),
        *(batch for found in batches.values() for batch in found),
    ]
    stated, calls = dict[str, dict[str, Any]](), dict[str, Call]()
    with one_thread(), torch.inference_mode():
        for kind in kinds:
            program, why = _made(kind, uri, head, lookup, every[0], path)
            if program is None:
                stated[kind] = {"why": why}
                continue
            program.keep(lookup.tables)

            def call(batch: Batch, program: Program | Compiled = program) -> Tensor:
                return program(lookup.given(batch))

            apart = largest(difference(predictor.computed(batch), call(batch)) for batch in every)
            if not apart <= SAME:
                stated[kind] = {"why": f"{NAMES[kind]} answers otherwise, by {apart:.1e} (allowed: {SAME:g})"}
                continue
            stated[kind] = {"difference": apart, **({"opset": OPSET} if kind == "onnx" else {})}
            calls[kind] = call
        if not calls:
            return {"kind": "eager", "why": "; ".join(told["why"] for told in stated.values())}
        calls["eager"], stated["eager"] = predictor.computed, {}
        times = np.array([alternated(found, *calls.values()) for found in batches.values()])
    for name, taken in zip(calls, times.T, strict=True):
        stated[name] = _of_sizes(taken) | stated[name]
    products = dict(zip(calls, times.prod(0), strict=True))
    fastest = min((name for name in calls if name != "eager" or not must), key=products.__getitem__)
    return {"kind": fastest, **stated.pop(fastest), **stated}


def _made(
    kind: Kind, uri: str, head: Mapping[str, Any], lookup: Lookup, some: Batch, path: Path
) -> tuple[Program | Compiled | None, str]:
    """A program of an export; or, second, why there is none."""
    if lacking := _lacks(kind):
        return None, lacking
    if kind == "compiled":
        library, why = library_of(uri, head)
        return (Compiled(library, lookup.whole.takes) if library else None), why
    if why := write_program(lookup.whole, {**lookup.tables, **lookup.given(some)}, path):
        return None, f"it cannot be written as ONNX ({why})"
    return Program(path), ""


def _lacks(kind: Kind) -> str:
    if kind == "compiled":
        return lacks_compiler()
    lacking = missing(MAKES)
    return f"{lacking} is not installed: {INSTALL}" if lacking else ""


def _against(must: bool, rows: pa.Table, tables: Sequence[Table]) -> str:
    """What speaks against all of them before anything is loaded."""
    if not len(rows):
        return "the test split has no row to compare by"
    widened = sum(table.rows * table.dim * 4 for table in tables if table.dtype != "float32")
    if widened > WIDENED and not must:
        return f"its tables of 16 bits would take {widened / 1e9:.1f} GB of memory to be compared"
    return ""


def _batches(predictor: Predictor, rows: pa.Table, size: int) -> Iterator[Batch]:
    """All rows, so many at once, repeated where they are fewer than that; of single ones as many as are timed."""
    if len(rows) < size:
        rows = rows.take(np.arange(size) % len(rows))
    for start in range(0, min(len(rows), CALLS * size) - size + 1, size):
        yield predictor.batch(rows.slice(start, size), where="test", first_row=start)


def difference(said: Tensor, found: Tensor) -> float:
    """The largest, of a number beyond 1 by its share; of what is no number none that is allowed."""
    return float(((found - said).abs() / said.abs().clamp(min=1)).max())


def largest(differences: Iterable[float]) -> float:
    """As `max`, which may lose what is no number."""
    return float(np.max(list(differences)))


def alternated(batches: Sequence[Batch], *calls: Call) -> tuple[float, ...]:
    """Milliseconds of a call of each, the median; who is first changes from batch to batch."""
    taken = tuple(list[float]() for _ in calls)
    for call in calls:
        call(batches[0])
    for number in range(CALLS):
        batch = batches[number % len(batches)]
        for turn in range(len(calls)):
            side = (number + turn) % len(calls)
            began = time.perf_counter()
            calls[side](batch)
            taken[side].append((time.perf_counter() - began) * 1000)
    return tuple(float(np.median(of)) for of in taken)


def _of_sizes(taken: Iterable[float]) -> dict[str, float]:
    return {f"ms_{size}": round(float(ms), 4) for size, ms in zip(SIZES, taken, strict=True)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch's own, within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
