"""`rtrain data prepare` on Ray Data: each stage is a data set of tasks, and each task leaves its files whole.

    read          a file             -> chunks of rows, as they are stored; what kinds of values they hold
    typed         a chunk            -> the same rows typed, in the order of time; how often each value comes
    vocabularies  a column           -> its values by falling frequency
    sorted        a slice of time    -> its rows from all chunks; their keys, by bucket
    aggregates    a key's bucket     -> what older rows say of each row
    data          a slice of time    -> the output's file, and its statistics

A task's answer lies beside the stages; one that has its answer is not done again. A finished stage's answers are one
file, and then the stages that nobody reads any more are deleted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from rtrain.config import to_dict
from rtrain.data.files import Files, find_files
from rtrain.data.prepare import joining, reading, statistics
from rtrain.data.prepare.config import Prepare
from rtrain.data.prepare.place import held, partial
from rtrain.data.prepare.prepared import Prepared, fingerprint, schema
from rtrain.data.prepare.types import settled
from rtrain.errors import DataError, RtrainError, RunFailed
from rtrain.launch.session import ray_session
from rtrain.rounding import ceil_div
from rtrain.run import Cluster
from rtrain.storage import Folder

VERSION = 1
"""Of the stages: what another one left is not gone on with."""
RECORD = "prepared.json"
"""Of the output: written last."""
Task = Callable[..., dict[str, Any]]


def prepare(config: Prepare, *, say: Callable[[str], None] = lambda _: None, progress: bool = True) -> Prepared:
    """Make the folder `config.out`, on the Ray that RAY_ADDRESS names, the one that is joined, or one of its own.

    After a kill the same call goes on from the last finished task. `say`: told what is gone on with, and what is not.

    Raises:
        DataError: a source that is not there or cannot be read, columns that do not fit, an `out` that holds something
            or that another process is at work on.
        RunFailed: Ray lost a task for good.
    """
    with held(config):
        return _prepare(config, say, progress)


def _prepare(config: Prepare, say: Callable[[str], None], progress: bool) -> Prepared:
    out, under_way = Folder(config.out), Folder(partial(config))
    if out.names() and not _is_being_moved(under_way, out):
        raise DataError(f"{config.out}: it is not empty. Give a new folder")
    files = find_files(config.source)
    source = [[path, size] for path, size in zip(files.paths, files.sizes, strict=True)]
    reading.refuse_unnamed(config, files)
    _begin(config, under_way, source, say)
    size = sum(size or 0 for size in files.sizes) / 1e6
    say(f"{len(files.paths):,} files of {size:,.1f} MB; Ray starts, which takes some seconds")
    with ray_session(Cluster(workers=1)):
        stages = _Stages(config, under_way, progress)
        types, chunks, rows = _typed(config, files, stages)
        words = stages.run(
            "vocabularies", reading.vocabulary, [(c, [x["name"] for x in chunks]) for c in config.vocabularies]
        )
        buckets = ceil_div(rows, joining.BUCKET_ROWS)
        slices = stages.run(
            "sorted", joining.slice_rows, [(chunks, buckets, n, ends) for n, ends in enumerate(joining.cuts(chunks))]
        )
        _drop(under_way, "read", "typed", "counts")
        names = [one["name"] for one in slices]
        of_keys = [(key, bucket, names) for key in config.keys for bucket in range(buckets)]
        stages.run("aggregates", joining.aggregate, of_keys)
        _drop(under_way, "keys")
        every, before, asked = ceil_div(rows, statistics.SAMPLE_ROWS), 0, []
        for number, one in enumerate(slices):
            asked.append((list(types), buckets, number, one["rows"], every, before))
            before += one["rows"]
        data = stages.run("data", joining.finish, asked)
    return _publish(config, source, words, data)


def _typed(config: Prepare, files: Files, stages: "_Stages") -> tuple[dict[str, str], list[dict[str, Any]], int]:
    """The type of each column, what is known of each chunk of typed rows, and how many rows there are."""
    found = stages.run("read", reading.read, [(files, number) for number in range(len(files.paths))])
    stored = [chunk for one in found for chunk in one["chunks"]]
    if not stored:
        raise DataError(f"{config.source}: there is no row in it")
    types = settled(config, stored)
    of_chunks = [(types, one["file"], one["where"], chunk) for one in found for chunk in one["chunks"]]
    chunks = stages.run("typed", reading.type_rows, of_chunks)
    return types, chunks, sum(chunk["rows"] for chunk in chunks)


def _begin(config: Prepare, under_way: Folder, source: list[Any], say: Callable[[str], None]) -> None:
    """Go on with what lies there of the same config and source; begin anew where another lies there."""
    asked = {k: v for k, v in to_dict(config).items() if k != "memory_gb"}
    record = json.loads(json.dumps({"version": VERSION, "config": asked, "source": source}))
    if under_way.exists("record.json"):
        before = under_way.read_json("record.json")
        if before == record:
            say(f"going on with {under_way.uri}")
            return
        changed = [name for name in record if before.get(name) != record[name]]
        say(f"starting anew: {' and '.join(changed)} changed since {under_way.uri}")
    elif under_way.names():
        raise DataError(
            f"{under_way.uri}: it holds something that no data prepare left. Move it, or give another --out"
        )
    under_way.remove()
    under_way.write_json("record.json", record)


def _drop(under_way: Folder, *stages: str) -> None:
    for name in stages:
        under_way.child(name).remove()


class _Stages:
    """Runs the tasks of one stage after the other, each once."""

    def __init__(self, config: Prepare, under_way: Folder, progress: bool) -> None:
        self._config, self._under_way, self._progress = config, under_way, progress

    def run(self, stage: str, task: Task, asked: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """The answer of each task, `task(config, *asked)`, in their order."""
        whole = f"{stage}.json"
        if self._under_way.exists(whole):
            answers: list[dict[str, Any]] = self._under_way.read_json(whole)
            return answers
        folder = self._under_way.child(f"{stage}.answers")
        there = set(folder.names())
        left = [number for number in range(len(asked)) if _answer(number) not in there]
        bar = tqdm(
            total=len(asked),
            initial=len(asked) - len(left),
            desc=stage,
            unit="task",
            disable=not (self._progress and asked) or None,
        )
        with bar:
            for _ in _on_ray(self._config, folder.uri, task, {number: asked[number] for number in left}):
                bar.update()
        answers = [folder.read_json(_answer(number)) for number in range(len(asked))]
        self._under_way.write(whole, json.dumps(answers).encode())
        folder.remove()
        return answers


def _answer(number: int) -> str:
    return f"{number:06d}.json"


def _on_ray(config: Prepare, answers: str, task: Task, asked: dict[int, tuple[Any, ...]]) -> Iterator[int]:
    """Do the tasks as rows of a Ray data set, a block each; gives the number of each that is done.

    Raises:
        DataError: as the task.
        RunFailed: Ray lost a task for good.
    """
    import ray

    if not asked:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    held = ray.put(asked)

    def work(row: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = task(config, *ray.get(held)[row["item"]])
        except RtrainError as error:  # Ray would wrap it, and try again
            return {"item": row["item"], "error": str(error)}
        Folder(answers).write(_answer(row["item"]), json.dumps(answer).encode())
        return {"item": row["item"], "error": ""}

    rows = ray.data.from_items([{"item": number} for number in asked], override_num_blocks=len(asked))
    try:
        for done in rows.map(work).iter_rows():
            if done["error"]:
                raise DataError(done["error"])
            yield done["item"]
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise RunFailed(
            f"{config.out}: Ray lost a task ({' '.join(str(error).split())[-300:]}). The same command goes on"
        ) from error


def _publish(config: Prepare, source: list[Any], words: list[Any], data: list[Any]) -> Prepared:
    """Statistics, record, and the move that makes the output appear."""
    under_way, out = Folder(partial(config)), Folder(config.out)
    whole = under_way.child("whole")
    found = statistics.combined(data)
    told = (json.dumps(found, indent=1) + "\n").encode()
    whole.write("statistics.json", told)
    digests = {one["file"]: one["sha256"] for one in (*words, *data)}
    digests["statistics.json"] = hashlib.sha256(told).hexdigest()
    made = Prepared(
        folder=config.out.rstrip("/"),
        rows=sum(one["rows"] for one in data),
        files=len(data),
        fingerprint=fingerprint(digests),
        schema=schema(config, found, {one["column"]: one for one in words}),
    )
    record = {"config": to_dict(config), "source": source, "fingerprint": made.fingerprint, "files": digests}
    begun = _is_being_moved(under_way, out)
    whole.write_json(RECORD, record)
    if out.names() and not begun:
        raise DataError(f"{config.out}: it is not empty any more. Give a new folder")
    if not begun:
        out.remove()
    whole.move(out, last=RECORD)
    under_way.remove()
    return made


def _is_being_moved(under_way: Folder, out: Folder) -> bool:
    """Whether what is in the output is of a move that was killed: on storages that rename nothing, its record lacks."""
    there, whole = set(out.names()), set(under_way.child("whole").names())
    return bool(there) and RECORD in whole - there and there <= whole
