"""The dense part of a ranking model as a program: ONNX, which ONNX Runtime runs without Python between its layers.

    program.onnx    in: what the model's pieces take, by name, any number of rows; out: "outputs", float32

Tables are no part of it: they stay mapped from the export's safetensors and are looked up by torch, so that nothing of
their size is written twice or held in memory. What comes of them goes in: pooled vectors, sequences with their masks.

Shape legend: B rows, T longest sequence.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtrain.batch import times
from rtrain.models.unsharded import Unsharded
from rtrain.nn.tables import mask, sequence

PROGRAM = "program.onnx"
OUTPUTS = "outputs"
OPSET = 18
"""Of the operators; ONNX Runtime has had all of them since 1.14."""
RUNS = ("onnxruntime",)
"""Packages that answer needs."""
MAKES = (*RUNS, "onnx", "onnxscript")
"""Packages that writing needs."""


def missing(packages: tuple[str, ...]) -> str:
    """Those that are not installed; empty: all are."""
    return ", ".join(name for name in packages if find_spec(name) is None)


def write_program(model: Unsharded, given: Mapping[str, Tensor], path: Path) -> str:
    """Write the program of a model that evaluates; returns why there is none, empty: there is.

    `given`: what `model.given` is of some rows, for names, kinds and sizes.
    """
    dense = model.dense().eval()
    some, axes = _shown(dense.takes, given)
    try:
        with torch.no_grad():
            made = torch.onnx.export(
                dense, some, dynamo=True, input_names=list(dense.takes), output_names=[OUTPUTS],
                dynamic_shapes={"given": axes}, opset_version=OPSET, verbose=False,
            )  # fmt: skip
            assert made is not None, "torch gives none to the older exporter alone"
            made.save(str(path), external_data=False)
    except Exception as error:  # of many kinds, of torch, onnxscript and of the model; none is a reason to lose the run
        return _first_line(error)
    return ""


def _shown(takes: tuple[str, ...], given: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Tensors to trace the model with, and of each the axes that may be of any size.

    No two such axes are of the same size here, nor of 1: torch would take them for one, or for one that never changes.
    """
    features = [name.removeprefix(sequence("")) for name in given if name.startswith(sequence(""))]
    longest = {name: max(2, given[sequence(name)].shape[1]) + n for n, name in enumerate(features)}
    rows = next(size for size in (3, 5, 7, 11, 13) if size not in longest.values())
    some, axes = [], []
    for name in takes:
        like = given[name]
        shape, free = [rows, *like.shape[1:]], {0: "rows"}
        for n, feature in enumerate(features):
            if name in (sequence(feature), mask(feature), times(feature)):
                shape[1], free[1] = longest[feature], f"longest_{n}"
        some.append(torch.ones(shape, dtype=like.dtype))
        axes.append(free)
    return tuple(some), tuple(axes)


def _first_line(error: Exception) -> str:
    """What went wrong at the bottom: exporters wrap it, and write pages."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}".rstrip(": ")


class Program:
    """A program that is loaded: as many threads within as torch has."""

    def __init__(self, path: Path):
        """Read a file whose sha256 was compared."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3  # errors
        self._session: Any = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._takes = [one.name for one in self._session.get_inputs()]

    def __call__(self, given: Mapping[str, Tensor]) -> Tensor:
        """Outputs as the model's, float32 [B] or [B, L], of what `Unsharded.given` gives of some rows."""
        (found,) = self._session.run([OUTPUTS], {name: given[name].numpy() for name in self._takes})
        return torch.from_numpy(found)
