"""Whether the parts of a run go together: model, data and layout, checked before anything starts."""

from typing import Any

from rtrain.data.cursor import batches_per_epoch
from rtrain.data.interactions import Interactions
from rtrain.data.samples import SPLITS, Samples
from rtrain.data.tokens import TokenDataset, Tokens
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh
from rtrain.models.decoder import Decoder
from rtrain.parallel import legal
from rtrain.run import Run


def refuse(run: Run, mesh: Mesh) -> None:
    """Refuse a layout that the model cannot have.

    Raises:
        ConfigError: as `rtrain.parallel.legal`.
    """
    if isinstance(run.model, Decoder):
        assert isinstance(run.data, Tokens), "Run refuses another pair"
        legal.refuse_dense(run.parallel, mesh, run.model, context=run.data.context, global_batch=run.global_batch)
    else:
        assert isinstance(run.data, Interactions), "Run refuses another pair"
        tables = run.model.table_list(run.data.schema)
        model = type(run.model).__name__
        legal.refuse(
            run.parallel,
            run.sparse_optim,
            tables,
            world_size=mesh.world_size,
            model=model,
            rows_per_rank=-(-run.global_batch // mesh.data),
        )


def refuse_shares(run: Run, data: Samples[Any], mesh: Mesh) -> None:
    """Refuse splits whose batches are too small for every data rank to get a row, before anything is trained.

    Raises:
        ConfigError: the first such split, and what would help.
    """
    for split in SPLITS:
        rows, ranks = data.rows(split), mesh.data
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
        ConfigError: tokens that the model's vocabulary does not have.
    """
    data = run.data.open()
    if isinstance(data, TokenDataset) and isinstance(run.model, Decoder) and data.vocab > run.model.vocab:
        raise ConfigError(
            f"model.vocab: {run.model.vocab}, but the tokens of {data.shards.folder} come from a vocabulary of "
            f"{data.vocab} ({data.shards.tokenizer}). Set model.vocab to {data.vocab} or more"
        )
    return data
