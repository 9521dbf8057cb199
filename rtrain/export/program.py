"""A ranking model as a program: ONNX, which ONNX Runtime runs without Python between its layers.

    program.onnx    in: tables, ids and shares as `rtrain.nn.gathered` names them, and what else the model's pieces take
                    of a batch, any number of rows; out: "outputs", float32

Weights of tables are no part of the file: they go in at each call, mapped from the export's safetensors as they lie
there, so that nothing of their size is written twice, copied or held in memory.

Shape legend: B rows, T longest sequence.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtrain.batch import times
from rtrain.models.unsharded import DensePart
from rtrain.nn.gathered import IDS, Gathered, ids_of, share
from rtrain.nn.tables import mask, names_given
from rtrain.scratch import Scratch

PROGRAM = "program.onnx"
OUTPUTS = "outputs"
OPSET = 18
"""Of the operators; ONNX Runtime has had all of them since 1.14."""
RUNS = ("onnxruntime",)
"""Packages that answer needs."""
FREE = "rows"
"""Name of the axis that all rows of a call are."""
MAKES = (*RUNS, "onnx", "onnxscript")
"""Packages that writing needs."""


def missing(packages: tuple[str, ...]) -> str:
    """Those that are not installed; empty: all are."""
    return ", ".join(name for name in packages if find_spec(name) is None)


class Whole(nn.Module):
    """Lookups and dense part, of all that they take by name."""

    def __init__(self, gathered: Gathered, dense: DensePart):
        super().__init__()
        self.gathered, self.dense = gathered, dense
        own = [name for name in dense.takes if name not in names_given(gathered.tables)]
        self.takes = (*gathered.of_tables, *gathered.names, *own)
        """Names, each once."""

    def forward(self, *given: Tensor) -> Any:
        """`given`: in the order of `takes`; the same as `Unsharded`'s."""
        named: Mapping[str, Tensor] = dict(zip(self.takes, given, strict=True))
        named = {**named, **self.gathered(named)}
        return self.dense(*(named[name] for name in self.dense.takes))


def write_program(whole: Whole, named: Mapping[str, Tensor], path: Path) -> str:
    """Write the program of a model that evaluates; returns why there is none, empty: there is.

    `named`: what it takes of some rows, for names, kinds and sizes.
    """
    some, axes = shown(whole, named)
    try:
        with torch.no_grad():
            made = torch.onnx.export(
                whole.eval(), some, dynamo=True, input_names=list(whole.takes), output_names=[OUTPUTS],
                dynamic_shapes={"given": axes}, opset_version=OPSET, verbose=False,
            )  # fmt: skip
            assert made is not None, "torch gives none to the older exporter alone"
            made.save(str(path), external_data=False)
    except Exception as error:  # of many kinds, of torch, onnxscript and of the model; none is a reason to lose the run
        return first_line(error)
    return ""


def shown(whole: Whole, named: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Tensors to trace the model with, and of each the axes that may be of any size.

    No two such axes are of the same size here, nor of 1: torch would take them for one, or for one that never changes.
    """
    lists = whole.gathered.lists
    longest = {name: max(2, named[ids_of(name)].shape[1]) + n for n, name in enumerate(lists)}
    rows = next(size for size in (3, 5, 7, 11, 13) if size not in longest.values())
    some: list[Tensor] = []
    axes: list[dict[int, str]] = []
    tables = set(whole.gathered.of_tables)
    for name in whole.takes:
        like = named[name]
        if name in tables:  # as it is, for nobody reads it here
            some.append(like)
            axes.append({})
            continue
        at = 1 if name == IDS else 0
        shape, free = list(like.shape), {at: FREE}
        shape[at] = rows
        for n, feature in enumerate(lists):
            if name in (ids_of(feature), share(feature), mask(feature), times(feature)):
                shape[1], free[1] = longest[feature], f"longest_{n}"
        some.append(torch.zeros(shape, dtype=like.dtype, device=like.device))
        axes.append(free)
    return tuple(some), tuple(axes)


def first_line(error: Exception) -> str:
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
        with Scratch("program") as nothing:  # where weights beside the program would be, whose sha256 nobody compared
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(nothing))
            self._session: Any = onnxruntime.InferenceSession(
                path.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
            )
        self._takes = [one.name for one in self._session.get_inputs()]
        self._tables: dict[str, Any] = {}

    def keep(self, tables: Mapping[str, Tensor]) -> None:
        """Tables that go in at every call, as they lie."""
        self._tables = {name: weight.numpy() for name, weight in tables.items()}
        self._takes = [name for name in self._takes if name not in tables]

    def __call__(self, given: Mapping[str, Tensor]) -> Tensor:
        """Outputs as the model's, float32 [B] or [B, L], of all else that it takes of some rows."""
        (found,) = self._session.run([OUTPUTS], {**self._tables, **{name: given[name].numpy() for name in self._takes}})
        return torch.from_numpy(found)
