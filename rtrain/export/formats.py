"""Every form that a model is exported in, by the name that its config gives in `exported`."""

from collections.abc import Callable, Mapping
from typing import Any

from rtrain.checkpoint.format import Stored
from rtrain.errors import ConfigError
from rtrain.export.artifact import export
from rtrain.export.chosen import KINDS, ROWS, Kind, choose, refuse_program
from rtrain.export.language import export_language, refuse_loaded
from rtrain.export.pruned import prune
from rtrain.export.quantised import quantise
from rtrain.export.quantised_program import quantise_program
from rtrain.export.retrieval import export_retrieval, wants_index
from rtrain.run import Run

Export = Callable[[Run, Stored, str, Mapping[str, float], Callable[[], None], Any], str]
"""Of a run the checkpoint, where to, its metrics, what raises where the folder is another's, and its data; gives the
URI."""


def _rows(
    run: Run, stored: Stored, uri: str, metrics: Mapping[str, float], check: Callable[[], None], dataset: Any
) -> str:
    done = export(run.model, run.data.schema, stored, uri, run=run.name, metrics=metrics, check=check)  # type: ignore
    if run.handoff.pruned:
        prune(run, done, dataset, check)
    if run.handoff.tables != "trained":
        quantise(run, done, dataset, check)
    wanted = run.handoff.program
    if wanted != "eager":
        rows = dataset.raw("test", 0, min(ROWS, dataset.rows("test")))
        kinds: tuple[Kind, ...] = KINDS if wanted == "measured" else (wanted,)
        if run.handoff.dense != "trained":
            kinds = ("onnx",)  # of which alone there are fewer bits
        choose(done, kinds, rows, must=wanted != "measured", tables=run.blueprint.tables, check=check)
    if run.handoff.dense != "trained":
        quantise_program(run, done, dataset, check)
    return done


FORMATS: Mapping[str, Export] = {"rtrain": _rows, "encoders": export_retrieval, "hugging face": export_language}


def refuse_export(run: Run, dataset: Any) -> None:
    """Refuse now, and not when the training is over, what the export of a run would miss here.

    Raises:
        ConfigError: a package that is not installed, or a program for a model whose export has none.
    """
    program = run.handoff.program
    if program != "eager" and run.model.exported != "rtrain":
        raise ConfigError(
            f"handoff.program: {program} is of models that score rows, and {type(run.model).__name__} is another. "
            "Leave it out"
        )
    for field, without in (("tables", "trained"), ("pruned", 0.0)):
        wanted = getattr(run.handoff, field)
        if wanted != without and run.model.exported != "rtrain":
            raise ConfigError(
                f"handoff.{field}: {wanted} is of models that score rows, and {type(run.model).__name__} is another. "
                "Leave it out"
            )
    if run.handoff.weights != "trained" and run.model.exported != "hugging face":
        raise ConfigError(
            f"handoff.weights: {run.handoff.weights} is of language models, and {type(run.model).__name__} is "
            "another. Leave it out"
        )
    if run.handoff.export and program in KINDS:
        refuse_program(program)
    if run.handoff.export and run.model.exported == "encoders":
        wants_index(run, dataset)
    if run.model.exported == "hugging face":
        loaded = {"serve_check": run.handoff.serve_check, "weights": run.handoff.weights != "trained"}
        for field in (name for name, asked in loaded.items() if asked):
            refuse_loaded(field)
