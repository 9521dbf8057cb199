"""Whether the parts of a run go together: model, data and layout, checked before anything starts."""

from typing import Any

from rtrain.data.cursor import batches_per_epoch
from rtrain.data.samples import SPLITS, Samples
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh
from rtrain.metrics.state import group_columns
from rtrain.models.protocol import Model
from rtrain.parallel import legal
from rtrain.run import Run


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


def open_data(run: Run) -> Samples[Any]:
    """The run's data, opened and checked against its model.

    Raises:
        DataError: data that is missing, damaged, or does not fit.
        ConfigError: data that the model cannot read, or without a column that metrics are asked by.
    """
    data: Samples[Any] = run.data.open()
    model: Model = run.model
    model.check(data)
    for metric in run.metrics:
        if group_columns(metric):
            data.refuse_columns(group_columns(metric), f"metrics: {metric.name}")
    if run.evaluation.slices:
        data.refuse_columns(run.evaluation.slices, "evaluation.slices")
    return data
