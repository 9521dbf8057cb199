"""Which program answers on the device of a replica, measured there: an export's head knows of the processor alone."""

import warnings

import torch

from rtrain.data.blank import blank_rows
from rtrain.errors import RtrainWarning
from rtrain.export.artifact import Predictor, library_of
from rtrain.export.chosen import SIZES, alternated, one_thread


def fastest(uri: str, predictor: Predictor) -> dict[str, tuple[float, ...]]:
    """Compile an export for a predictor's device, and let that answer where it takes less time there.

    `predictor`: of that export, answering by torch's modules, with its tables on the device. Times are of 1 and of 64
    rows of the longest lists, from host memory to outputs in host memory, milliseconds by name; none where it cannot
    be compiled, which a warning says. What is compiled is held against torch's modules as it is made.
    """
    library, why = library_of(uri, predictor.head, str(predictor.device))
    if library is None:
        warnings.warn(f"export {uri!r}: torch's modules answer: {why}", RtrainWarning, stacklevel=2)
        return {}
    program = predictor.compiled_as(library)
    batches = [blank_rows(predictor.schema, size, size) for size in SIZES]
    with one_thread(), torch.inference_mode():
        eager, compiled = zip(
            *(alternated([one], predictor.computed, lambda b: predictor.computed_by(program, b)) for one in batches),
            strict=True,
        )
    if compiled[0] * compiled[1] < eager[0] * eager[1]:
        predictor.program, predictor.looks_up = program, True
    return {"eager": eager, "compiled": compiled}
