"""Which program answers of an export: both are run on rows of the run, and the head names the faster one.

    "program": {"kind": "onnx", "ms_1": 0.05, "ms_64": 0.2, "difference": 3e-7, "eager": {"ms_1": 0.1, "ms_64": 0.3}}
    "program": {"kind": "eager", "why": "..."}      where there was nothing to compare with

Times are of lookups and dense part of 1 and of 64 rows, one thread, the median of calls that alternate.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rtrain.batch import Batch
from rtrain.errors import ConfigError, RtrainWarning
from rtrain.export.artifact import HEAD, LOOKS_UP, Predictor
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


def refuse_program() -> None:
    """Of a run that wants ONNX whatever it is worth.

    Raises:
        ConfigError: a package that it needs is not installed.
    """
    if lacking := missing(MAKES):
        raise ConfigError(f"handoff.program: onnx needs {lacking}: {INSTALL}. Or set it to eager")


def choose(
    uri: str,
    wanted: Literal["measured", "onnx"],
    rows: pa.Table,
    *,
    tables: Sequence[Table] = (),
    check: Callable[[], None] = lambda: None,
) -> None:
    """Say in the head of a finished export what answers of it, and put the program beside it where that is ONNX.

    Args:
        uri: the export.
        wanted: ONNX by all means, or where it is the faster.
        rows: of the run's own, as the data hold them.
        tables: the model's.
        check: as `rtrain.export.artifact.export`.

    Raises:
        ConfigError: ONNX is wanted by all means, and it cannot be had, or answers otherwise.
    """
    folder = Folder(uri)
    head = folder.read_json(HEAD)
    with Scratch("program") as scratch:
        stated = _compared(uri, wanted, rows, tables, scratch / PROGRAM)
        if stated["kind"] == "onnx":
            head["format"] = LOOKS_UP
            head["files"] |= put(folder, PROGRAM, lambda to: shutil.move(scratch / PROGRAM, to), check)
    if wanted == "onnx" and "why" in stated:
        folder.discard(HEAD)
        raise ConfigError(f"handoff.program: onnx cannot be had: {stated['why']}. Set it to measured or eager")
    if "why" in stated:
        text = f"handoff.program: the export answers by torch's modules: {stated['why']}. Or set it to eager"
        warnings.warn(text, RtrainWarning, stacklevel=2)
    check()
    folder.write_json(HEAD, head | {"program": stated})


def _compared(uri: str, wanted: str, rows: pa.Table, tables: Sequence[Table], path: Path) -> dict[str, Any]:
    """What the head says; where it says ONNX the program is at `path`."""
    if why := _against(wanted, rows, tables):
        return {"kind": "eager", "why": why}
    predictor = Predictor(uri, program="eager")
    whole = predictor.batch(rows, where="test", first_row=0)
    lookup = predictor.lookup
    if why := write_program(lookup.whole, {**lookup.tables, **lookup.given(whole)}, path):
        return {"kind": "eager", "why": f"it cannot be written as ONNX ({why})"}
    with one_thread(), torch.inference_mode():
        program = Program(path)
        program.keep(lookup.tables)

        def onnx(batch: Batch) -> Tensor:
            return program(lookup.given(batch))

        batches = {size: list(_batches(predictor, rows, size)) for size in SIZES}
        every = [whole, *(batch for found in batches.values() for batch in found)]
        apart = largest(difference(predictor.computed(batch), onnx(batch)) for batch in every)
        if not apart <= SAME:
            return {"kind": "eager", "why": f"ONNX answers otherwise, by {apart:.1e} (allowed: {SAME:g})"}
        eager_ms, onnx_ms = zip(
            *(alternated(found, predictor.computed, onnx) for found in batches.values()), strict=True
        )
    faster = wanted == "onnx" or np.prod(onnx_ms) < np.prod(eager_ms)
    times = {"onnx": _of_sizes(onnx_ms), "eager": _of_sizes(eager_ms)}
    kind, other = ("onnx", "eager") if faster else ("eager", "onnx")
    return {"kind": kind, **times[kind], "difference": apart, other: times[other], "opset": OPSET}


def _against(wanted: str, rows: pa.Table, tables: Sequence[Table]) -> str:
    """What speaks against it before anything is loaded."""
    if lacking := missing(MAKES):
        return f"{lacking} is not installed: {INSTALL}"
    if not len(rows):
        return "the test split has no row to compare by"
    widened = sum(table.rows * table.dim * 4 for table in tables if table.dtype != "float32")
    if widened > WIDENED and wanted != "onnx":
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


def alternated(batches: Sequence[Batch], one: Call, other: Call) -> tuple[float, float]:
    """Milliseconds of a call of each, the median, first one and then the other."""
    taken: tuple[list[float], list[float]] = ([], [])
    for call in (one, other):
        call(batches[0])
    for number in range(CALLS):
        batch = batches[number % len(batches)]
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            (one, other)[side](batch)
            taken[side].append((time.perf_counter() - began) * 1000)
    return float(np.median(taken[0])), float(np.median(taken[1]))


def _of_sizes(taken: Sequence[float]) -> dict[str, float]:
    return {f"ms_{size}": round(ms, 4) for size, ms in zip(SIZES, taken, strict=True)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch's own, within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
