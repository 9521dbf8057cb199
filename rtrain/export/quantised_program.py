"""The dense part of a program in int8: held against it on the test split, and taken where that is faster.

    "program": {"kind": "onnx", ..., "dense": {"kept": "int8", "bytes": [2173269, 554328], "rows": 65536,
                "difference": 0.002, "auc": [0.8012, 0.8011], "ms_1": [0.15, 0.09], ...}}

Of each pair the first is of the program as it was trained. Weights of products are int8, with a scale a column; what
they are multiplied with is made int8 at each call, by its own least and greatest number (ONNX Runtime's dynamic
quantisation). Tables, sums, normalisations and products of two activations stay float32.
"""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor
from rtrain.export.chosen import SIZES
from rtrain.export.head import HEAD
from rtrain.export.program import PROGRAM, Program
from rtrain.export.quantised import compared
from rtrain.export.weights import fetched, put
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.storage import Folder

KINDS = ("MatMul", "Gemm")
"""Operators whose weights lose bits."""


def quantise_program(run: Run, uri: str, dataset: Any, check: Callable[[], None]) -> None:
    """Let the dense part of a finished export's program be int8, where calls of 1 and of 64 rows are faster by it.

    The head says what was measured, also where it stays as it was trained; so it does without an ONNX program.

    Raises:
        ConfigError: a metric of the test split would lose more than `run.handoff.tolerance`, or there is no test row;
            the export is then as it was.
    """
    folder = Folder(uri)
    head = folder.read_json(HEAD)
    if head.get("program", {}).get("kind") != "onnx":
        return
    with Scratch("dense") as scratch:
        before = dict(fetched(uri, {PROGRAM: head["files"][PROGRAM]}))[PROGRAM]
        _write(before, scratch / PROGRAM)
        sizes = [before.stat().st_size, (scratch / PROGRAM).stat().st_size]
        trained, fewer = Predictor(uri), Predictor(uri)
        fewer.program = Program(scratch / PROGRAM)
        fewer.program.keep(fewer.lookup.tables)
        stated = compared(run, trained, fewer, dataset, field="dense")
        ms = np.array([stated[f"ms_{size}"] for size in SIZES])
        kept = "int8" if ms[:, 1].prod() < ms[:, 0].prod() else "trained"
        files = head["files"]
        if kept == "int8":
            files = files | put(folder, PROGRAM, partial(shutil.move, scratch / PROGRAM), check)
    check()
    program = head["program"] | {"dense": {"kept": kept, "bytes": sizes, **stated}}
    folder.write_json(HEAD, head | {"files": files, "program": program})


def _write(program: Path, to: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    said = logging.getLogger()
    level = said.level
    said.setLevel(logging.ERROR)  # it advises to simplify the graph first, which torch's exporter has done
    try:
        quantize_dynamic(program, to, op_types_to_quantize=list(KINDS), per_channel=True, weight_type=QuantType.QInt8)
    except Exception as error:  # of onnx, onnxruntime and of the graph
        raise ConfigError(f"handoff.dense: int8 cannot be had ({error}). Leave it out") from error
    finally:
        said.setLevel(level)
