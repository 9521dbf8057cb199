"""What a checkpoint is: logical tensors in safetensors shards, a JSON manifest, a commit marker.

Every rank writes the rectangles that it owns; no tensor is ever gathered for the sake of a
checkpoint. The manifest says where each rectangle of each logical tensor lies, so that a world of
any size and layout can read just what it needs. Nothing is pickled.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from rtrain.checkpoint import shards
from rtrain.checkpoint.fence import Attempt, Fenced, check_of
from rtrain.checkpoint.folders import DAMAGED, SHARD, CheckpointFolders, clear, sweep
from rtrain.checkpoint.marker import MANIFEST, MARKER, Marker
from rtrain.errors import CheckpointError, one_line
from rtrain.parallel.chunks import Chunk
from rtrain.scratch import Scratch
from rtrain.storage import Folder, make_folder, sha256_of

FORMAT = 1
T = TypeVar("T")


class NewerFormat(CheckpointError):
    """Intact, but written by a newer rtrain: going on from an older one would lose its work."""


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
        mine: tuple[Any, str, bool]
        try:
            mine = (work(), "", False)
        except Fenced as error:
            mine = (None, str(error), True)
        except Exception as error:  # whatever the store raises; botocore's errors are no OSError
            mine = (None, f"rank {rank}: {one_line(error)}", False)
        found: list[tuple[Any, str, bool]] = [mine] * world
        if world > 1:
            dist.all_gather_object(found, mine, group=group)
        for _, problem, fenced in found:
            if fenced:
                raise Fenced(problem)
            if problem:
                verdict = [_give_up(folder, attempt) if rank == 0 else ""]
                if world > 1:
                    dist.broadcast_object_list(verdict, group_src=0, group=group)
                if verdict[0]:
                    raise Fenced(verdict[0])
                raise CheckpointError(
                    f"checkpoint step {step}: {problem}. Nothing was committed; free space or mend the storage "
                    f"{folder.uri!r} and start the run again: it resumes from its last committed step"
                )
        return [value for value, _, _ in found]

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
        if torch.cuda.is_available():
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


class Stored:
    """A committed checkpoint, opened for reading: `meta` and any rectangle of any tensor."""

    def __init__(self, folder: Folder, step: int):
        """Read and check the manifest.

        Raises:
            CheckpointError: no marker, an altered manifest, a newer format, a path outside the folder.
        """
        self.folder, self.step = folder, step
        here = f"checkpoint step {step}"
        names = folder.names()
        if MARKER not in names:
            foreign = _foreign(names)
            raise CheckpointError(f"{here}: not committed" if not foreign else f"{here}: {foreign}")
        marker = Marker.read(folder)
        try:
            manifest = marker.manifest_in(folder)
        except FileNotFoundError as error:
            raise CheckpointError(f"{here}: {marker.manifest} is missing ({error})") from error
        if manifest is None:
            raise CheckpointError(f"{here}: {MANIFEST} or {MARKER} was altered or cut off after it was committed")
        self.meta: dict[str, Any] = json.loads(manifest)
        if not isinstance(self.meta, dict) or self.meta.get("tool", "rtrain") != "rtrain" or "format" not in self.meta:
            raise CheckpointError(f"{here}: its manifest is not of rtrain's making. Convert it, or take another folder")
        if self.meta["format"] > FORMAT:
            raise NewerFormat(f"{here}: format {self.meta['format']} is newer than {FORMAT}. Update rtrain")
        for name in self.meta["files"]:
            if not SHARD.fullmatch(name):
                raise CheckpointError(f"{here}: the manifest names a file {name!r} that no checkpoint has")
        self._scratch: Scratch | None = None
        self._local: dict[str, Path] = {}

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.folder.uri

    def close(self) -> None:
        """Delete what was fetched of remote storage; done too when the object goes."""
        if self._scratch:
            self._scratch.remove()

    def verify(self) -> None:
        """Read every file back and compare it with the manifest.

        Raises:
            CheckpointError: files that are missing, cut off or altered, by name.
        """
        present = set(self.folder.names())
        files: dict[str, Any] = self.meta["files"]
        missing = sorted(set(files) - present)
        if missing:
            raise CheckpointError(
                f"checkpoint step {self.step}: manifest lists {len(files)} shards, "
                f"{len(files) - len(missing)} present (missing {', '.join(missing)})"
            )
        for name, said in files.items():
            size = self.folder.size(name)
            if size != said["bytes"]:
                raise CheckpointError(f"checkpoint step {self.step}: {name} has {size} bytes, not {said['bytes']}")
            if sha256_of(self._fetch(name)) != said["sha256"]:
                raise CheckpointError(f"checkpoint step {self.step}: {name} was altered (its sha256 differs)")

    def check_model(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Hold the names and shapes that a model's tensors have against what is stored.

        Raises:
            CheckpointError: it names the tensors that differ.
        """
        wanted = {name: list(shape) for name, shape in shapes.items()}
        there = {n: entry["shape"] for n, entry in self.meta["tensors"].items() if n.startswith("model.")}
        problems = [
            f"{n} {there[n]} there, {wanted[n]} here" for n in sorted(wanted) if n in there and there[n] != wanted[n]
        ]
        problems += [f"{n} only here" for n in sorted(set(wanted) - set(there))]
        problems += [f"{n} only there" for n in sorted(set(there) - set(wanted))]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(
                f"checkpoint step {self.step}: it is of another model: {'; '.join(problems[:5])}{more}. "
                "Train under another name, or go back to the stored config"
            )

    def names(self, prefix: str = "") -> Iterator[str]:
        """Logical tensor names that begin with `prefix`."""
        return (n for n in self.meta["tensors"] if n.startswith(prefix))

    def nbytes(self, name: str) -> int:
        """Bytes of a whole logical tensor."""
        entry = self._entry(name)
        return int(torch.Size(entry["shape"]).numel() * getattr(torch, entry["dtype"]).itemsize)

    def tensor(self, name: str) -> Tensor:
        """A whole logical tensor."""
        entry = self._entry(name)
        shape = tuple(entry["shape"])
        return self._gather(entry, (0,) * len(shape), shape)

    def read(self, chunk: Chunk) -> Tensor:
        """The stored values of a chunk's rectangle, whatever layout wrote them.

        Raises:
            CheckpointError: no such tensor, or one of another shape.
        """
        entry = self._entry(chunk.name)
        if tuple(entry["shape"]) != tuple(chunk.shape):
            raise CheckpointError(
                f"checkpoint step {self.step}: {chunk.name} has shape {entry['shape']} there, but "
                f"{list(chunk.shape)} in this model. Train under another name, or go back to the stored config"
            )
        return self._gather(entry, chunk.offsets, tuple(chunk.data.shape))

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] | None = self.meta["tensors"].get(name)
        if entry is None:
            raise CheckpointError(
                f"checkpoint step {self.step}: it has no tensor {name!r}; it was made by another model or optimizer"
            )
        return entry

    def _gather(self, entry: dict[str, Any], offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        out = torch.empty(sizes, dtype=getattr(torch, entry["dtype"]))
        covered = 0
        for piece in entry["chunks"]:
            begin = [max(o, p) for o, p in zip(offsets, piece["offsets"], strict=True)]
            wanted = zip(offsets, sizes, piece["offsets"], piece["sizes"], strict=True)
            end = [min(o + n, p + m) for o, n, p, m in wanted]
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            there = tuple(slice(b - p, e - p) for b, e, p in zip(begin, end, piece["offsets"], strict=True))
            here = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, offsets, strict=True))
            # Opened anew each time: a file that stays mapped keeps every page that was read in this process's memory.
            with safe_open(self._file(piece["file"]), framework="pt") as file:
                part = file.get_slice(piece["key"])[there] if there else file.get_tensor(piece["key"])
                out[here] = part
            self.folder.patience.went_on()
            covered += part.numel()
        if covered != out.numel():
            raise CheckpointError(
                f"checkpoint step {self.step}: {covered} of {out.numel()} elements of a tensor are stored"
            )
        return out

    def _file(self, name: str) -> Path:
        """Local path of one of its files, fetched once."""
        if name not in self.meta["files"]:
            raise CheckpointError(f"checkpoint step {self.step}: a tensor is said to lie in {name!r}, no file of it")
        if name not in self._local:
            self._local[name] = self._fetch(name)
        return self._local[name]

    def _fetch(self, name: str) -> Path:
        if self.folder.is_local:
            return self.folder.fetch(name, Path())
        self._scratch = self._scratch or Scratch("checkpoint")
        return self.folder.fetch(name, self._scratch.path)


def newest(folders: CheckpointFolders, *, note: bool = False) -> tuple[Stored | None, list[str]]:
    """The newest intact checkpoint (none if there is none) and what was wrong with newer ones.

    Every byte of it is read. `note`: leave what is found in the folders, so that pruning need not read them.
    """
    problems: list[str] = []
    for step in reversed(folders.committed()):
        try:
            stored = Stored(folders.of(step), step)
            stored.verify()
            if note:
                folders.of(step).discard(DAMAGED)  # mended since
            return stored, problems
        except NewerFormat:
            raise
        except CheckpointError as error:
            problems.append(str(error))
            if note:
                with suppress(Exception):  # a store that cannot be written is no reason not to read it
                    folders.of(step).write(DAMAGED, str(error).encode())
    return None, problems


def _foreign(names: list[str]) -> str:
    """What else a folder without our marker may be; empty when it is nothing known."""
    for tool, signs in {
        "torch.distributed.checkpoint": (".metadata",),
        "DeepSpeed": ("zero_to_fp32.py", "latest"),
        "transformers": ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"),
        "Lightning": ("last.ckpt",),
        "Ray Train": (".metadata.json",),
    }.items():
        if any(sign in names for sign in signs):
            return f"it is a checkpoint of {tool}, which rtrain does not read. Export it to safetensors there"
    return ""
