"""Every form that a model is exported in, by the name that its config gives in `exported`."""

from collections.abc import Callable, Mapping

from rtrain.checkpoint.format import Stored
from rtrain.export.artifact import export
from rtrain.export.huggingface import export_decoder
from rtrain.run import Run

Export = Callable[[Run, Stored, str, Mapping[str, float], Callable[[], None]], str]
"""Of a run the checkpoint, where to, its metrics, and what raises where the folder is another's; gives the URI."""


def _rows(run: Run, stored: Stored, uri: str, metrics: Mapping[str, float], check: Callable[[], None]) -> str:
    return export(run.model, run.data.schema, stored, uri, run=run.name, metrics=metrics, check=check)  # type: ignore


def _tokens(run: Run, stored: Stored, uri: str, metrics: Mapping[str, float], check: Callable[[], None]) -> str:
    return export_decoder(run.model, stored, uri, context=run.data.context, check=check)  # type: ignore


FORMATS: Mapping[str, Export] = {"rtrain": _rows, "hugging face": _tokens}
