"""The export of a model that finds items among all: what encodes users and items, and the catalogue's vectors.

    export/model-00000.safetensors ...   weights under the unsharded module's own names
           items.parquet                 the catalogue: `item` as the data call it, `row` of its table, `vector`, as
                                         it is compared: its product with a user's is the score, and how `often`
                                         training had it
           users.parquet                 of data with raw ids alone: `user` as the data call it, and its `row`
           known.safetensors             of data with features or a graph alone: what is known of each id, and the edges
           items.faiss                   of many items alone: see `rtrain.export.index`
           export.json                   config of model and data, step, metrics, sha256 of each file; written last

Histories and what users have had are not in it: who asks says them. `rtrain.export.encoders` reads it.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rtrain import config
from rtrain.checkpoint.format import Stored
from rtrain.data.assembly import Assembly
from rtrain.data.columns import Lists
from rtrain.data.graph import Graph
from rtrain.data.retrieval_batch import Ids
from rtrain.data.retrieval_set import RetrievalDataset
from rtrain.errors import RtrainWarning
from rtrain.export.artifact import FORMAT
from rtrain.export.head import HEAD
from rtrain.export.index import ASKED, INDEX, LEAST, Index, Stated, Vectors, library, measured, write_index
from rtrain.export.weights import fetched, load, put, save, write_weights
from rtrain.models.unsharded import Unsharded
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.storage import Folder
from rtrain.version import VERSION

ITEMS, USERS, KNOWN = "items.parquet", "users.parquet", "known.safetensors"
BATCH = 8192
"""Items that go through the model at once."""
ASKING = 1024
"""Users that go through the model at once."""
NO_INDEX = (
    f"export: no index of its items would find {LEAST:g} of the best 10 in less time than comparing all of them takes, "
    "so the export has none. Their vectors are not alike in groups: train longer, or set handoff.index_from to none"
)


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
        files |= put(folder, KNOWN, partial(save, known), check)
    if names:
        who = pa.table({"user": names["user"], "row": np.arange(len(names["user"]))})
        files |= put(folder, USERS, partial(pq.write_table, who), check)
    catalogue, of = dataset.catalogue, names.get("item")
    write = partial(_write_items, model, dataset.assembly, catalogue, dataset.often, of)
    files |= put(folder, ITEMS, write, check)
    stated = None
    if wants_index(run, dataset):
        index, stated = _indexed(run, folder, model, dataset, check)
        files |= index
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
        }
        | ({"index": stated.to_json()} if stated else {}),
    )
    return folder.uri


def wants_index(run: Run, dataset: RetrievalDataset) -> bool:
    """Whether an export of the run gets an index.

    Raises:
        ConfigError: it does, and faiss is not installed.
    """
    least = run.handoff.index_from
    if least is None or len(dataset.catalogue) < least:
        return False
    library()
    return True


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


@torch.inference_mode()
def queries_of(model: Unsharded, assembly: Assembly, context: Lists, when: Lists | None) -> Tensor:
    """Vectors of those who ask, as they are compared, float32 [U, E]; `when`: of histories, their items' times."""
    found, count = [], len(context.lengths)
    for start in range(0, count, ASKING):
        some = np.arange(start, min(start + ASKING, count))
        batch = assembly.of_whom(context.select(some), some, when.select(some) if when else None)
        queries, *_ = model(batch)
        found.append(model.objective.compared(queries[torch.arange(len(some)), batch.last].float()))
    return torch.cat(found)


def vectors_in(items: pa.Table) -> Vectors:
    """Those of `items.parquet`, float32 [I, E]."""
    vectors: Vectors = items["vector"].combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    return vectors


def places_of(rows: Ids, catalogue: Ids) -> Ids:
    """Places in the catalogue, each once, rising, of those rows of the items' table that it has."""
    return np.searchsorted(catalogue, np.intersect1d(rows, catalogue))


def _indexed(
    run: Run, folder: Folder, model: Unsharded, dataset: RetrievalDataset, check: Callable[[], None]
) -> tuple[dict[str, str], Stated | None]:
    """The index's file and what it finds for users of the test split; neither where it does not pay."""
    start, stop = dataset.ranges["test"]
    drawn = np.random.default_rng(run.seed).permutation(stop - start)[: 2 * ASKED] + start
    context, when, seen = dataset.whom(drawn)
    queries = queries_of(model, dataset.assembly, context, when)
    hidden = [places_of(seen.values[first:last], dataset.catalogue) for first, last in pairwise(seen.offsets.tolist())]
    with Scratch("index") as scratch:
        vectors = vectors_in(pq.read_table(folder.fetch(ITEMS, scratch), columns=["vector"])).copy()
        length = write_index(vectors, scratch / INDEX)
        stated = measured(Index(scratch / INDEX, length), queries, torch.from_numpy(vectors), joined(hidden))
        if stated is None:
            warnings.warn(NO_INDEX, RtrainWarning, stacklevel=2)
            return {}, None
        return put(folder, INDEX, lambda path: shutil.move(scratch / INDEX, path), check), stated


def joined(lists: Sequence[Ids]) -> Lists:
    """One list behind the other."""
    nothing = np.zeros(0, np.int64)
    return Lists.of(np.concatenate([nothing, *lists]), np.array([len(x) for x in lists], np.int64))


def _write_items(
    model: Unsharded, assembly: Assembly, catalogue: Ids, often: Ids, names: pa.Array | None, path: Path
) -> None:
    writer, written = None, 0
    for rows, vectors in vectors_of(model, assembly, catalogue):
        flat = pa.array(vectors.flatten().numpy())
        table = pa.table(
            {
                "item": pa.array(rows) if names is None else names.take(pa.array(rows)),
                "row": rows,
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
                "often": often[written : written + len(rows)],
            }
        )
        written += len(rows)
        writer = writer or pq.ParquetWriter(path, table.schema, write_page_checksum=True)
        writer.write_table(table)
    assert writer is not None, "a data set has items"
    writer.close()
