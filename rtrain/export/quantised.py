"""Tables of an export in fewer bits: written beside it, held against it on the test split, and taken where that allows.

    "tables": {"kept": "int8", "rows": 65536, "bytes": [6400000, 2000000], "difference": 0.0004,
               "auc": [0.8012, 0.8011], "ms_1": [0.21, 0.19], ...}

Of each pair the first is of the tables as they were trained. Of the dense part see `quantised_program`.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from rtrain.batch import Batch
from rtrain.errors import ConfigError
from rtrain.evaluation.columns import partial_of
from rtrain.export.artifact import LOOKS_UP, Predictor, fewer_bits
from rtrain.export.chosen import CALLS, SIZES, alternated, difference, largest, one_thread
from rtrain.export.head import HEAD
from rtrain.export.weights import Entry, fetched, put, write_tensors
from rtrain.metrics.state import group_columns
from rtrain.nn.gathered import quantised, scale_of, weights_of
from rtrain.nn.tables import Table
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.storage import Folder, sha256_of

Kept = Literal["float16", "int8", "int4"]
Part = Literal["tables", "dense", "pruned"]
STAYS: Mapping[Part, str] = {
    "tables": "Tables stay as trained",
    "dense": "The program stays as it is",
    "pruned": "The dense part stays as trained",
}
LESS: Mapping[Part, str] = {"tables": "keep more bits", "dense": "keep more bits", "pruned": "leave less out"}
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
ROWS = 1 << 16
"""Of the test split, at most, that are answered both ways: a few more, to the end of a batch."""
BLOCK = 1 << 16
"""Rows of a table that are in memory at once."""


def quantise(run: Run, uri: str, dataset: Any, check: Callable[[], None]) -> None:
    """Keep the tables of a finished export as `run.handoff.tables` says.

    `check`: as `rtrain.export.artifact.export`.

    Raises:
        ConfigError: a metric of the test split would lose more than `run.handoff.tolerance`, or there is no test row;
            the export is then as it was.
    """
    kept: Kept = run.handoff.tables  # type: ignore[assignment]  # asked by whoever wants another than "trained"
    folder = Folder(uri)
    head = folder.read_json(HEAD)
    tables = {weights_of(t): t for t in run.blueprint.tables if not t.beside}
    with Scratch("quantised") as scratch:
        files, sizes = _written(uri, head["files"], tables, kept, scratch)
        stated = {"kept": kept, "bytes": sizes, "difference": 0.0}
        beside = Folder(str(scratch))
        beside.write_json(HEAD, head | {"format": max(LOOKS_UP, head["format"]), "files": files, "tables": stated})
        stated |= compared(run, Predictor(uri, program="eager"), Predictor(beside.uri), dataset, field="tables")
        for name in files.keys() - head["files"].keys():
            put(folder, name, partial(shutil.move, scratch / name), check)
    check()
    folder.write_json(HEAD, head | {"format": max(LOOKS_UP, head["format"]), "files": files, "tables": stated})
    for name in head["files"].keys() - files.keys():
        folder.discard(name)


def _written(
    uri: str, of: Mapping[str, str], tables: Mapping[str, Table], kept: Kept, to: Path
) -> tuple[dict[str, str], list[int]]:
    """All files of the export in another folder, those that have tables under other names: names and sha256; and the
    bytes of its tables, before and then."""
    files, sizes = dict[str, str](), [0, 0]
    for name, local in fetched(uri, of):
        held = load_file(local) if name.startswith("model-") else {}
        if not held.keys() & tables.keys():
            shutil.copyfile(local, to / name)
            files[name] = of[name]
            continue
        entries = [entry for key, x in held.items() for entry in _entries(key, x, tables.get(key), kept)]
        name = name.replace(".safetensors", f".{kept}.safetensors")
        write_tensors(to / name, entries)
        files[name] = sha256_of(to / name)
        sizes[0] += sum(held[key].nbytes for key in held.keys() & tables.keys())
        sizes[1] += sum(
            torch.Size(shape).numel() * getattr(torch, dtype).itemsize
            for key, dtype, shape, _ in entries
            if key.removesuffix(".scale") in tables
        )
    return files, sizes


def _entries(name: str, x: Tensor, table: Table | None, kept: Kept) -> Iterator[Entry]:
    """What a file has of a weight."""
    if table is None:
        yield name, str(x.dtype).removeprefix("torch."), x.shape, lambda: [x]
    elif kept == "float16":
        yield name, kept, x.shape, lambda: (block.half() for block in x.split(BLOCK))
    else:
        bits = BITS[kept]
        yield name, "uint8", (x.shape[0], x.shape[1] * bits // 8), partial(_of_blocks, x, bits, 0)
        yield scale_of(table), "float32", (x.shape[0], 2), partial(_of_blocks, x, bits, 1)


def _of_blocks(x: Tensor, bits: int, part: int) -> Iterator[Tensor]:
    """Either part of what `quantised` gives, never of a whole table."""
    return (quantised(block.float(), bits)[part] for block in x.split(BLOCK))


@torch.inference_mode()
def compared(run: Run, trained: Predictor, fewer: Predictor, dataset: Any, *, field: Part) -> dict[str, Any]:
    """What the head says of the test split's first rows: metrics, difference and times, as trained and in fewer bits.

    `field`: of `run.handoff`, that asked for them.

    Raises:
        ConfigError: as `quantise`.
    """
    kept = getattr(run.handoff, field)
    batches = _first(dataset.scan("test", global_batch=run.evaluation.batch, rank=0, world_size=1))
    if not batches:
        raise ConfigError(f"handoff.{field}: the test split has no row to hold it against. Set it to 'trained'")
    link = trained.model.objective.link
    tallies = [trained.model.objective.tally(None, None) for _ in range(2)]
    apart = []
    for batch in batches:
        said, found = trained.computed(batch), fewer.computed(batch)
        apart.append(difference(link(said), link(found)))
        for tally, outputs in zip(tallies, (said, found), strict=True):
            tally.add(outputs, batch)
    rows = sum(batch.rows for batch in batches)
    before, after = (tally.scored()[0] for tally in tallies)
    both, most = _metrics(run, before, after, rows, field, fewer_bits(trained.head)), largest(apart)
    if not isfinite(most):
        raise ConfigError(
            f"handoff.{field}: {kept} makes answers that are no numbers (float16 holds up to 65,504). {STAYS[field]}. "
            "Keep other bits"
        )
    return {"rows": rows, "difference": most, **both, **_times(dataset, trained, fewer)}


def _first(batches: Iterable[Batch]) -> list[Batch]:
    """Until there are `ROWS`."""
    found, rows = list[Batch](), 0
    for batch in batches:
        found.append(batch)
        rows += batch.rows
        if rows >= ROWS:
            break
    return found


def _metrics(
    run: Run,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    rows: int,
    field: Part,
    others: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[float]]:
    """Of each label, those that need no column beside what rows are scored by; what is nan both times is left out.

    `others`: what the head states of parts that cost some already; the tolerance is of all together.
    """
    found = {}
    for prefix, metric in ((p, m) for p in before for m in run.metrics if not group_columns(m)):
        was, now = (metric.value(partial_of(metric, of[prefix], None)) for of in (before, after))
        if was != was and now != now:
            continue
        name, way = f"{prefix}{metric.name}", 1 if metric.higher_is_better else -1
        loss = way * (was - now)
        lost = sum(max(0.0, way * (of[name][0] - of[name][1])) for of in others.values() if name in of)
        if not loss + lost <= run.handoff.tolerance:
            beside = f", beside {lost:.5f} that {' and '.join(others)} cost," if lost else ""
            raise ConfigError(
                f"handoff.{field}: {getattr(run.handoff, field)} costs {loss:.5f} of {name} ({was:.5f} to {now:.5f})"
                f"{beside} on {rows:,} test rows, and handoff.tolerance is {run.handoff.tolerance:g}. {STAYS[field]}. "
                f"Raise the tolerance, or {LESS[field]}; the same command finishes the run then"
            )
        found[name] = [was, now]
    return found


def _times(dataset: Any, trained: Predictor, fewer: Predictor) -> dict[str, list[float]]:
    """Milliseconds of lookups and dense part, one thread, medians of calls that alternate."""
    found = {}
    with one_thread():
        for size in SIZES:
            batches = list(islice(dataset.scan("test", global_batch=size, rank=0, world_size=1), CALLS))
            taken = alternated(batches, trained.computed, fewer.computed)
            found[f"ms_{size}"] = [round(ms, 4) for ms in taken]
    return found
