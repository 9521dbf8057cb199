"""What a checkpoint is: logical tensors in safetensors shards, a JSON manifest, a commit marker.

Every rank writes the rectangles that it owns; no tensor is ever gathered for the sake of a
checkpoint. The manifest says where each rectangle of each logical tensor lies, so that a world of
any size and layout can read just what it needs. Nothing is pickled.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rtrain.checkpoint.folders import DAMAGED, SHARD, CheckpointFolders
from rtrain.checkpoint.marker import MANIFEST, MARKER, Marker
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import WEIGHTS, Chunk
from rtrain.scratch import Scratch
from rtrain.storage import Folder, sha256_of

FORMAT = 1


class NewerFormat(CheckpointError):
    """Intact, but written by a newer rtrain: going on from an older one would lose its work."""


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
        for name, entry in files.items():
            size = self.folder.size(name)
            if size != entry["bytes"]:
                raise CheckpointError(f"checkpoint step {self.step}: {name} has {size} bytes, not {entry['bytes']}")
            if sha256_of(self._fetch(name)) != entry["sha256"]:
                raise CheckpointError(f"checkpoint step {self.step}: {name} was altered (its sha256 differs)")

    def check_model(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Hold the names and shapes that a model's tensors have against what is stored.

        Raises:
            CheckpointError: it names the tensors that differ.
        """
        wanted = {name: list(shape) for name, shape in shapes.items()}
        there = {n: entry["shape"] for n, entry in self.meta["tensors"].items() if n.startswith(WEIGHTS)}
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

    def weights(self) -> dict[str, str]:
        """The unsharded module's own name of each weight -> its logical name, in the order of names."""
        return {name.removeprefix(WEIGHTS): name for name in sorted(self.names(WEIGHTS))}

    def nbytes(self, name: str) -> int:
        """Bytes of a whole logical tensor."""
        entry = self._entry(name)
        return int(torch.Size(entry["shape"]).numel() * getattr(torch, entry["dtype"]).itemsize)

    def shape(self, name: str) -> tuple[list[int], str]:
        """Shape of a whole logical tensor, and torch's name of its dtype."""
        entry = self._entry(name)
        return entry["shape"], entry["dtype"]

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
