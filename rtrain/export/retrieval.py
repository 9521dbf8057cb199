"""The export of a model that finds items among all: what encodes users and items, and the catalogue's vectors.

    export/model-00000.safetensors ...   weights under the unsharded module's own names
           items.parquet                 the catalogue: `item` as the data call it, `row` of its table, and `vector`, as
                                         it is compared: its product with a user's is the score
           users.parquet                 of data with raw ids alone: `user` as the data call it, and its `row`
           known.safetensors             of data with features or a graph alone: what is known of each id, and the edges
           export.json                   config of model and data, step, metrics, sha256 of each file; written last

Histories and what users have had are not in it: who asks says them. `rtrain.export.encoders` reads it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from rtrain import config
from rtrain.checkpoint.format import Stored
from rtrain.data.assembly import Assembly
from rtrain.data.columns import Lists
from rtrain.data.graph import Graph
from rtrain.data.retrieval_batch import Ids
from rtrain.data.retrieval_set import RetrievalDataset
from rtrain.export.artifact import FORMAT, HEAD
from rtrain.export.weights import fetched, load, put, write_weights
from rtrain.models.unsharded import Unsharded
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.version import VERSION

ITEMS, USERS, KNOWN = "items.parquet", "users.parquet", "known.safetensors"
BATCH = 8192
"""Items that go through the model at once."""


def export_retrieval(
    run: Run,
    stored: Stored,
    uri: str,
    metrics: Mapping[str, float],
    check: Callable[[], None],
    dataset: RetrievalDataset,
) -> str:
    """Write the model of a checkpoint, whatever layout it was trained at; returns the export's URI.

    `check` is called before each file goes to its place, and raises where the folder is another's by now. Neither
    the model nor the catalogue's vectors are whole in memory.
    """
    folder, names, known = Folder(uri), dataset.feedback.names, known_of(dataset.assembly)
    check()
    folder.discard(HEAD)
    files = write_weights(folder, stored, check)
    model = Unsharded(run.blueprint, seed=0, table_device="meta")
    load(model, fetched(folder.uri, files), lambda name, local: None)
    if known:
        files |= put(folder, KNOWN, partial(save_file, known), check)
    if names:
        who = pa.table({"user": names["user"], "row": np.arange(len(names["user"]))})
        files |= put(folder, USERS, partial(pq.write_table, who), check)
    catalogue, of = dataset.catalogue, names.get("item")
    files |= put(folder, ITEMS, partial(_write_items, model, dataset.assembly, catalogue, of), check)
    check()
    folder.write_json(
        HEAD,
        {
            "format": FORMAT,
            "run": run.name,
            "step": stored.step,
            "model": config.to_dict(run.model),
            "data": config.to_dict(run.data),
            "timed": dataset.feedback.timed,
            "metrics": dict(metrics),
            "rtrain": VERSION,
            "files": files,
        },
    )
    return folder.uri


def known_of(assembly: Assembly) -> dict[str, Tensor]:
    """What a model needs to know of ids, by name; see `assembly_of`."""
    found = dict[str, Tensor]()
    for of, features in assembly.side.items():
        for name, lists in features.items():
            found[f"{of}.{name}.values"] = torch.from_numpy(np.ascontiguousarray(lists.values))
            found[f"{of}.{name}.offsets"] = torch.from_numpy(np.ascontiguousarray(lists.offsets))
    if assembly.graph is not None:
        for name, ids in zip(("user", "item"), assembly.graph.pairs(), strict=True):
            found[f"graph.{name}"] = torch.from_numpy(ids)
    return found


def assembly_of(known: Mapping[str, Tensor], data: Any) -> Assembly:
    """The way back from `known_of`, of data of such a config."""
    side: dict[str, dict[str, Lists]] = {of: {} for of in ("user", "item") if of in data.side}
    for name in (name.removesuffix(".values") for name in known if name.endswith(".values")):
        of, _, feature = name.partition(".")
        side[of][feature] = Lists(known[f"{name}.values"].numpy(), known[f"{name}.offsets"].numpy())
    side = {of: {name: found[name] for name in getattr(data.facts, f"{of}_features")} for of, found in side.items()}
    graph = None
    if data.graph:
        pairs = (known[f"graph.{of}"].numpy() for of in ("user", "item"))
        graph = Graph(*pairs, users=data.users, items=data.items)
    return Assembly(data.longest, side, graph)


@torch.inference_mode()
def vectors_of(model: Unsharded, assembly: Assembly, items: Ids) -> Iterator[tuple[Ids, Tensor]]:
    """Rows of the items' table, so many at once, and their vectors as they are compared, float32 [B, E]."""
    for start in range(0, len(items), BATCH):
        rows = items[start : start + BATCH]
        _, candidates, *_ = model(assembly.of_items(rows))
        yield rows, model.objective.compared(candidates[:, 0, 0].float())


def _write_items(model: Unsharded, assembly: Assembly, catalogue: Ids, names: pa.Array | None, path: Path) -> None:
    writer = None
    for rows, vectors in vectors_of(model, assembly, catalogue):
        flat = pa.array(vectors.flatten().numpy())
        table = pa.table(
            {
                "item": pa.array(rows) if names is None else names.take(pa.array(rows)),
                "row": rows,
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, write_page_checksum=True)
        writer.write_table(table)
    assert writer is not None, "a data set has items"
    writer.close()
