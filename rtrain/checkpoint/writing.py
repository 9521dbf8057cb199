"""Writing a checkpoint: every rank its own rectangles, then rank 0 the manifest and the marker that commits it."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rtrain.checkpoint import shards
from rtrain.checkpoint.fence import Attempt, Fenced, check_of
from rtrain.checkpoint.folders import CheckpointFolders, clear, sweep
from rtrain.checkpoint.format import FORMAT
from rtrain.checkpoint.marker import MARKER, Marker
from rtrain.errors import CheckpointError, one_line
from rtrain.parallel.chunks import Chunk
from rtrain.scratch import Scratch
from rtrain.storage import Folder, make_folder

T = TypeVar("T")


def save(
    folders: CheckpointFolders,
    step: int,
    chunks: Iterable[Chunk],
    meta: Mapping[str, Any],
    *,
    attempt: Attempt | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write and commit one checkpoint; a collective over all ranks of `group` (none: the default one).

    `meta` (rank 0's counts) is stored in the manifest beside the tensors' places. `attempt` (on
    rank 0): whose right to write it is; without one nobody else may write the run.

    Raises:
        CheckpointError: on every rank, when any rank could not write its share; nothing is committed.
        Fenced: on every rank, when another attempt has taken the run over; nothing is committed.
    """
    write_collected(folders, step, collect(chunks), meta, attempt=attempt, group=group)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Of one rank's part of the work."""

    value: Any = None
    problem: str = ""
    fenced: bool = False
    """Whether the problem is that another attempt has taken the run over."""


def write_collected(
    folders: CheckpointFolders,
    step: int,
    collected: "Collected",
    meta: Mapping[str, Any],
    *,
    attempt: Attempt | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """`save` of what `collect` gave; nothing of the model is touched, so a thread may do it."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    folder = folders.of(step)

    def everywhere(work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank. A failure is told to all and raised on all: nobody is left waiting."""
        try:
            outcome = _Outcome(value=work())
        except Fenced as error:
            outcome = _Outcome(problem=str(error), fenced=True)
        except Exception as error:  # whatever the store raises; botocore's errors are no OSError
            outcome = _Outcome(problem=f"rank {rank}: {one_line(error)}")
        outcomes = [outcome] * world
        if world > 1:
            dist.all_gather_object(outcomes, outcome, group=group)
        for one in outcomes:
            if one.fenced:
                raise Fenced(one.problem)
            if one.problem:
                verdict = [_give_up(folder, attempt) if rank == 0 else ""]
                if world > 1:
                    dist.broadcast_object_list(verdict, group_src=0, group=group)
                if verdict[0]:
                    raise Fenced(verdict[0])
                raise CheckpointError(
                    f"checkpoint step {step}: {one.problem}. Nothing was committed; free space or mend the storage "
                    f"{folder.uri!r} and start the run again: it resumes from its last committed step"
                )
        return [one.value for one in outcomes]

    def prepare() -> str:
        """What this checkpoint's files have in their names; rank 0 decides."""
        if attempt is None:
            folder.remove()
            return ""
        attempt.check()
        return attempt.names_suffix

    suffix = everywhere(lambda: prepare() if rank == 0 else "")[0]
    name = f"rank-{rank:05d}{suffix}.safetensors"
    places = [{**place, "file": name} for place in collected.places]
    shares = everywhere(lambda: {"places": places, "files": {name: _write_share(folder, name, collected.tensors)}})
    head = {"format": FORMAT, "tool": "rtrain", "step": step, "world_size": world, **meta}
    everywhere(lambda: _commit(folder, f"manifest{suffix}.json", head, shares, attempt) if rank == 0 else None)


def _give_up(folder: Folder, attempt: Attempt | None) -> str:
    """Free the space of a checkpoint that failed; why not, when the folder is another attempt's by now."""
    check = check_of(attempt)
    try:
        check()
        # Half of it would only take the space that is missing.
        if folder.exists(MARKER):
            sweep(folder, check)
        else:
            clear(folder, check)
    except Fenced as error:
        return str(error)
    except Exception:
        return ""  # the storage is gone: nothing can be freed
    return ""


class Collected:
    """One rank's tensors on the host by their key in its file, and what the manifest says of each."""

    def __init__(self, tensors: dict[str, Tensor], places: list[dict[str, Any]]):
        self.tensors, self.places = tensors, places


def collect(chunks: Iterable[Chunk], keep: dict[str, Tensor] | None = None) -> Collected:
    """Bring the chunks to the host; a collective.

    `keep`: memory of an earlier call to copy into, so that what comes out does not change when
    training goes on; it is filled where it lacks a tensor. Without it CPU tensors are not copied.
    """
    tensors: dict[str, Tensor] = {}
    places = []
    for chunk in chunks:
        key = f"{chunk.name}@{','.join(map(str, chunk.offsets))}"
        tensors[key] = _on_host(chunk.data.detach(), key, keep)
        places.append(
            {
                "name": chunk.name,
                "shape": list(chunk.shape),
                "dtype": str(chunk.data.dtype).removeprefix("torch."),
                "key": key,
                "offsets": list(chunk.offsets),
                "sizes": list(chunk.data.shape),
            }
        )
    if keep is not None:
        for key in set(keep) - set(tensors):
            del keep[key]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    return Collected(tensors, places)


def _on_host(data: Tensor, key: str, keep: dict[str, Tensor] | None) -> Tensor:
    if keep is None:
        return data.to("cpu").contiguous()
    held = keep.get(key)
    if held is None or held.shape != data.shape or held.dtype != data.dtype:
        held = keep[key] = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
    held.copy_(data, non_blocking=True)
    return held


def _write_share(folder: Folder, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    with _scratch(folder) as scratch:
        local = Path(scratch) / name
        file = shards.write(local, tensors, folder.patience.went_on)
        folder.adopt(local, name)
    return file


def _scratch(folder: Folder) -> AbstractContextManager[str | Path]:
    """Beside the target on local storage, so that the file is moved by a rename."""
    if not folder.is_local:
        return Scratch("checkpoint")
    make_folder(folder.path)
    return tempfile.TemporaryDirectory(dir=folder.path, prefix=".writing-")


def _commit(
    folder: Folder, name: str, head: dict[str, Any], shares: list[dict[str, Any]], attempt: Attempt | None
) -> None:
    tensors: dict[str, Any] = {}
    for place in (p for s in shares for p in s["places"]):
        entry = tensors.setdefault(place["name"], {"shape": place["shape"], "dtype": place["dtype"], "chunks": []})
        entry["chunks"].append({k: place[k] for k in ("file", "key", "offsets", "sizes")})
    files = {file: said for s in shares for file, said in s["files"].items()}
    manifest = json.dumps({**head, "files": files, "tensors": tensors}).encode()
    folder.write(name, manifest)
    marker = Marker.of(manifest, name)
    if attempt is None:
        folder.write(MARKER, marker.encode())
    else:
        attempt.commit(head["step"], name, marker.sha256)
        if not folder.create(
            MARKER, marker.encode()
        ):  # of the checkpoint that this one replaces, if the run is still ours
            attempt.check()
            folder.write(MARKER, marker.encode())
        try:
            attempt.confirm()
        except Fenced:
            if marker.is_on(folder, folder.names()):
                folder.discard(MARKER)
            raise
    with suppress(Exception):  # it is committed: what is left over takes space and nothing else
        sweep(folder, check_of(attempt))
        if attempt is not None:
            attempt.shorten_log()
