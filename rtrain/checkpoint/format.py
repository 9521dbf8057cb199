"""What a checkpoint is: logical tensors in safetensors shards, a JSON manifest, a commit marker.

Every rank writes the rectangles that it owns; no tensor is ever gathered for the sake of a
checkpoint. The manifest says where each rectangle of each logical tensor lies, so that a world of
any size and layout can read just what it needs. Nothing is pickled.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rtrain.checkpoint.store import MANIFEST, MARKER, SHARD, CheckpointFolders, Folder, sha256_of
from rtrain.errors import CheckpointError, one_line
from rtrain.parallel.chunks import Chunk

FORMAT = 1
T = TypeVar("T")


class NewerFormat(CheckpointError):
    """Intact, but written by a newer rtrain: going on from an older one would lose its work."""


def save(folders: CheckpointFolders, step: int, chunks: Iterable[Chunk], meta: Mapping[str, Any]) -> None:
    """Write and commit one checkpoint; a collective over all ranks of the default group.

    `meta` (rank 0's counts) is stored in the manifest beside the tensors' places.

    Raises:
        CheckpointError: on every rank, when any rank could not write its share; nothing is committed.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    folder, name = folders.of(step), f"rank-{rank:05d}.safetensors"
    tensors, places = _collect(chunks, name)

    def everywhere(work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank. A failure is told to all and raised on all: nobody is left waiting."""
        mine: tuple[Any, str]
        try:
            mine = (work(), "")
        except Exception as error:  # whatever the store raises; botocore's errors are no OSError
            mine = (None, f"rank {rank}: {one_line(error)}")
        found: list[tuple[Any, str]] = [mine] * world
        dist.all_gather_object(found, mine)
        for _, problem in found:
            if problem:
                if rank == 0:
                    with suppress(Exception):
                        folder.remove()  # half of it would only take the space that is missing
                raise CheckpointError(
                    f"checkpoint step {step}: {problem}. Nothing was committed; free space or mend the storage "
                    f"{folder.uri!r} and start the run again: it resumes from its last committed step"
                )
        return [value for value, _ in found]

    everywhere(lambda: folder.remove() if rank == 0 else None)
    shares = everywhere(lambda: {"places": places, "files": {name: _write_share(folder, name, tensors)}})
    head = {"format": FORMAT, "step": step, "world_size": world, **meta}
    everywhere(lambda: _commit(folder, head, shares) if rank == 0 else None)


def _collect(chunks: Iterable[Chunk], name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """This rank's tensors by their key in the file, and what the manifest says of each; a collective."""
    tensors: dict[str, Tensor] = {}
    places = []
    for chunk in chunks:
        key = f"{chunk.name}@{','.join(map(str, chunk.offsets))}"
        tensors[key] = chunk.data.detach().to("cpu").contiguous()
        places.append(
            {
                "name": chunk.name,
                "shape": list(chunk.shape),
                "dtype": str(chunk.data.dtype).removeprefix("torch."),
                "file": name,
                "key": key,
                "offsets": list(chunk.offsets),
                "sizes": list(chunk.data.shape),
            }
        )
    return tensors, places


def _write_share(folder: Folder, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=_scratch(folder)) as scratch:
        local = Path(scratch) / name
        save_file(tensors, local)
        file = {"bytes": local.stat().st_size, "sha256": sha256_of(local)}
        folder.adopt(local, name)
    return file


def _scratch(folder: Folder) -> str | None:
    """Beside the target on local storage, so that the file is moved by a rename."""
    if not folder.is_local:
        return None
    Path(folder.path).mkdir(parents=True, exist_ok=True)
    return str(folder.path)


def _commit(folder: Folder, head: dict[str, Any], shares: list[dict[str, Any]]) -> None:
    tensors: dict[str, Any] = {}
    for place in (p for s in shares for p in s["places"]):
        entry = tensors.setdefault(place["name"], {"shape": place["shape"], "dtype": place["dtype"], "chunks": []})
        entry["chunks"].append({k: place[k] for k in ("file", "key", "offsets", "sizes")})
    files = {name: file for s in shares for name, file in s["files"].items()}
    manifest = json.dumps({**head, "files": files, "tensors": tensors}).encode()
    folder.write(MANIFEST, manifest)
    folder.write(MARKER, hashlib.sha256(manifest).hexdigest().encode())


class Stored:
    """A committed checkpoint, opened for reading: `meta` and any rectangle of any tensor."""

    def __init__(self, folder: Folder, step: int):
        """Read and check the manifest.

        Raises:
            CheckpointError: no marker, an altered manifest, a newer format, a path outside the folder.
        """
        self.folder, self.step = folder, step
        here = f"checkpoint step {step}"
        try:
            marker, manifest = folder.read(MARKER), folder.read(MANIFEST)
        except FileNotFoundError as error:
            raise CheckpointError(f"{here}: not committed ({error})") from error
        if hashlib.sha256(manifest).hexdigest().encode() != marker.strip():
            raise CheckpointError(f"{here}: {MANIFEST} or {MARKER} was altered or cut off after it was committed")
        self.meta: dict[str, Any] = json.loads(manifest)
        if self.meta["format"] > FORMAT:
            raise NewerFormat(f"{here}: format {self.meta['format']} is newer than {FORMAT}. Update rtrain")
        for name in self.meta["files"]:
            if not SHARD.fullmatch(name):
                raise CheckpointError(f"{here}: the manifest names a file {name!r} that no checkpoint has")
        self._scratch = tempfile.TemporaryDirectory(prefix="rtrain-checkpoint-")
        self._local: dict[str, Path] = {}

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.folder.uri

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
            if sha256_of(self.folder.fetch(name, Path(self._scratch.name))) != said["sha256"]:
                raise CheckpointError(f"checkpoint step {self.step}: {name} was altered (its sha256 differs)")

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
            self._local[name] = self.folder.fetch(name, Path(self._scratch.name))
        return self._local[name]


def newest(folders: CheckpointFolders) -> tuple[Stored | None, list[str]]:
    """The newest intact checkpoint (none if there is none) and what was wrong with newer ones."""
    problems: list[str] = []
    for step in reversed(folders.committed()):
        try:
            stored = Stored(folders.of(step), step)
            stored.verify()
            return stored, problems
        except NewerFormat:
            raise
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems
