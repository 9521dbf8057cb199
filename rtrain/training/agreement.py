"""Whether the parts of a run go together: model, data and layout, checked before anything starts."""

import math
from typing import Any

from rtrain.checkpoint.format import Stored
from rtrain.data.cursor import batches_per_epoch
from rtrain.data.samples import SPLITS, Samples
from rtrain.errors import ConfigError, did_you_mean
from rtrain.mesh import Mesh
from rtrain.metrics.state import group_columns
from rtrain.models.protocol import Model
from rtrain.nn.tables import names_given
from rtrain.parallel import legal
from rtrain.run import Run

NAMED = 3
"""Files that an error names."""


def refuse(run: Run, mesh: Mesh) -> None:
    """Refuse a layout that the model cannot have.

    Raises:
        ConfigError: as `rtrain.parallel.legal`.
    """
    legal.refuse(
        run.parallel,
        mesh,
        run.blueprint,
        run.sparse_optim,
        on_gpu=bool(run.cluster.gpus_per_worker),
        global_batch=run.global_batch,
        model=type(run.model).__name__,
    )


def refuse_shares(run: Run, data: Samples[Any], mesh: Mesh) -> None:
    """Refuse splits whose batches are too small for every data rank to get a row, before anything is trained.

    Raises:
        ConfigError: the first such split, and what would help.
    """
    for split in SPLITS:
        rows, ranks = data.rows(split), mesh.readers(run.blueprint.dealt)
        name, batch = ("global_batch", run.global_batch)
        if split != "train":
            name, batch = ("evaluation.batch", run.evaluation.batch)
        smallest = rows // batches_per_epoch(rows, batch)
        if rows < ranks:
            raise ConfigError(
                f"{data.split_field}: the {split} split has {rows} rows, but each of the {ranks} data ranks needs one. "
                f"Change {data.split_field}.valid and {data.split_field}.test, bring more data, or use fewer workers"
            )
        if smallest < ranks:
            raise ConfigError(
                f"{name}: {batch} cuts the {split} split's {rows} rows into batches of {smallest}, but each of the "
                f"{ranks} data ranks needs a row of every batch. Raise {name}, or use fewer workers"
            )


def _refuse_names(run: Run, inputs: tuple[str, ...] | None) -> None:
    """Refuse a piece that takes what nothing gives."""
    if inputs is None:
        return
    blueprint = run.blueprint
    given = (*inputs, *names_given(blueprint.tables))
    for piece in blueprint.pieces:
        for name in piece.takes:
            if name not in given:
                near = did_you_mean(name, given) or f". They give {', '.join(given) or 'nothing'}"
                raise ConfigError(
                    f"model {type(run.model).__name__}: its piece {piece.name!r} takes {name!r}, which neither batches "
                    f"nor tables give{near}"
                )


def open_data(run: Run) -> Samples[Any]:
    """The run's data, opened and checked against its model.

    Raises:
        DataError: data that is missing, damaged, or does not fit.
        ConfigError: data that the model cannot read, or without a column that metrics are asked by.
    """
    data: Samples[Any] = run.data.open()
    model: Model = run.model
    model.check(data)
    _refuse_names(run, data.inputs)
    for metric in run.metrics:
        if group_columns(metric):
            data.refuse_columns(group_columns(metric), f"metrics: {metric.name}")
    data.refuse_metrics(run.metrics)
    if run.evaluation.slices:
        data.refuse_columns(run.evaluation.slices, "evaluation.slices")
    return data


def refuse_other_data(run: Run, stored: Stored, data: Samples[Any]) -> None:
    """Refuse to go on from a checkpoint with data that are not those that it was trained on.

    Raises:
        ConfigError: both fingerprints.
    """
    before = stored.meta["data_fingerprint"]
    if before != data.fingerprint:
        since = data.written_since(float(stored.meta.get("saved_at", math.inf)))
        more = f" and {len(since) - NAMED} more" if len(since) > NAMED else ""
        written = f"; written to since: {', '.join(since[:NAMED])}{more}" if since else ""
        raise ConfigError(
            f"run {run.name!r}: the data changed since step {stored.step} (fingerprint {before} -> "
            f"{data.fingerprint}{written}). Bring them back as they were, train under another name, or start anew with "
            "--fresh"
        )
