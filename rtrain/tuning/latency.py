"""How long the exported model of a trial takes to answer one request: an objective beside its quality."""

import sys
from typing import Any

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.errors import ConfigError, RunFailed
from rtrain.export.artifact import is_retrieval, modules_of
from rtrain.export.formats import FORMATS
from rtrain.export.head import HEAD
from rtrain.export.request import rows_of
from rtrain.release.probe import SIZES, probe
from rtrain.run import Run
from rtrain.storage import Folder

LATENCY = "latency_ms"
"""Median over the requests of one row (a retrieval model: one user), in a process of its own, one thread."""
PROBED = "probed"


def refuse_latency(run: Run) -> None:
    """Refuse a model whose export no probe can ask.

    Raises:
        ConfigError: a language model.
    """
    if run.model.exported not in ("rtrain", "encoders"):
        raise ConfigError(
            f"search.objectives: {LATENCY} is of models that rank or retrieve; {type(run.model).__name__} generates. "
            "Weigh parameters or seconds instead"
        )


def latency_ms(run: Run, step: int) -> float:
    """Export a checkpoint as the recipe would, and time it; the export is removed again.

    Raises:
        RunFailed: the export cannot be loaded or asked.
    """
    dataset: Any = run.data.open()
    folder = Folder(run.folder).child(PROBED)
    stored = Stored(CheckpointFolders(run.folder).of(step), step)
    try:
        exported = FORMATS[run.model.exported](run, stored, folder.uri, {}, lambda: None, dataset)
        rows = [] if is_retrieval(exported) else rows_of(dataset.raw("valid", 0, max(SIZES)), dataset.schema)
        own = [name for name in modules_of(Folder(exported).read_json(HEAD)) if name in sys.modules]
        probed = probe(exported, rows, [], modules=own)
    finally:
        folder.remove()
    if probed.error:
        raise RunFailed(f"{LATENCY}: the export of step {step} cannot be asked: {probed.error}")
    return float(probed.latency_ms["1"][0])
