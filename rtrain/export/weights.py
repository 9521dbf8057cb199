"""The weights of an export: written from a checkpoint block by block, and mapped into a process that answers.

So neither asks for memory of the size of a table: of a mapped file the pages that are read come and go.
"""

import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rtrain.checkpoint.format import Stored
from rtrain.errors import CheckpointError, RtrainError, briefly
from rtrain.export.head import HEAD
from rtrain.export.sparse import unpacked
from rtrain.parallel.chunks import Chunk
from rtrain.rounding import ceil_div
from rtrain.scratch import Scratch
from rtrain.storage import Folder, refused_by_storage, sha256_of

Init = TypeVar("Init", bound=Callable[..., None])
FILE_BYTES = 2 * 1024**3
"""A file has several tensors up to here, or one that is larger."""
BLOCK_BYTES = 1 << 26
DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""torch's names, and safetensors'."""

Check = Callable[[], None]


def write_weights(folder: Folder, stored: Stored, check: Check) -> dict[str, str]:
    """A checkpoint's weights as files of an export; their names, and the sha256 of each."""
    files: dict[str, str] = {}
    for index, names in enumerate(_packs(stored)):
        files |= put(folder, f"model-{index:05d}.safetensors", partial(_write, stored, names), check)
    return files


def put(folder: Folder, name: str, write: Callable[[Path], object], check: Check) -> dict[str, str]:
    """A file of an export, written by `write` to a path and then put in its place; its name, and its sha256."""
    with Scratch("export") as scratch:
        write(scratch / name)
        found = {name: sha256_of(scratch / name)}
        check()
        folder.adopt(scratch / name, name)
    return found


def put_text(folder: Folder, name: str, text: str) -> dict[str, str]:
    """A small file of an export; its name, and its sha256."""
    content = text.encode()
    folder.write(name, content)
    return {name: sha256(content).hexdigest()}


def loading(init: Init) -> Init:
    """An `__init__` that reads the export at its first argument, with a line for what a damaged one makes it raise."""

    @wraps(init)
    def read(self: Any, uri: str, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, uri, *args, **kwargs)
        except (RtrainError, OSError, torch.OutOfMemoryError, torch.AcceleratorError):  # what is read is not at fault
            raise
        except Exception as error:
            if refused := refused_by_storage(error):
                raise CheckpointError(f"export {uri!r}: it cannot be read ({refused})") from error
            raise CheckpointError(
                f"export {uri!r}: it does not load ({briefly(error)}). Export the run again, or mend the code of its "
                "model if the error is there"
            ) from error

    return cast(Init, read)


def fetched(uri: str, files: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Each file of an export, by name, and where it lies until the next is asked for; `files`: name -> its sha256.

    What is mapped then stays so: a file that is deleted keeps its blocks until nobody has it open.

    Raises:
        CheckpointError: a file that is missing, was altered, or lies outside the folder.
    """
    folder = Folder(uri)
    for name, digest in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"export {uri!r}: it names a file outside its folder: {name!r}")
        with Scratch("export") as scratch:
            local = folder.fetch(name, scratch)
            if not local.exists() or sha256_of(local) != digest:
                raise CheckpointError(f"export {uri!r}: {name} is missing or was altered. Export the run again")
            yield name, local


def refuse_altered(uri: str) -> None:
    """Read every file of an export.

    Raises:
        CheckpointError: as `fetched`.
    """
    for _ in fetched(uri, Folder(uri).read_json(HEAD)["files"]):
        pass


def load(
    model: nn.Module,
    files: Iterator[tuple[str, Path]],
    other: Callable[[str, Path], object],
    *,
    tables: Collection[str] = (),
    apart: bool = False,
) -> dict[str, Tensor]:
    """Make the weights of an export the model's, mapped; a file that holds none goes to `other`, by its name.

    What is stored in 16 bits and computed in 32 is widened, and so in memory.

    Args:
        model: best with its tables on the `meta` device, so that it never has weights of its own.
        files: as `fetched`.
        other: takes a file's name, and where it lies.
        tables: names of weights that are returned as they are stored, mapped, with their scales.
        apart: whether the model goes without those.
    """
    weights: dict[str, Tensor] = {}
    for name, local in files:
        if name.startswith("model-"):
            weights |= load_file(local)
        else:
            other(name, local)
    own = model.state_dict()
    weights = unpacked(weights, {name: x.shape for name, x in own.items()})
    found = {name: weights[name] for name in weights if name.removesuffix(".scale") in tables}
    fitting = {name: stored.to(own[name].dtype) if name in own else stored for name, stored in weights.items()
               if not (apart and name in found)}  # fmt: skip
    model.load_state_dict(fitting | ({name: own[name] for name in tables} if apart else {}), assign=True)
    model.eval()
    return found


def tables_in(uri: str, files: Mapping[str, str], names: Collection[str]) -> dict[str, Tensor]:
    """Those of these weights that an export has, as they are stored, mapped; `files`: as `fetched`'s.

    Raises:
        CheckpointError: as `fetched`.
    """
    found = dict[str, Tensor]()
    for name, local in fetched(uri, {name: digest for name, digest in files.items() if name.startswith("model-")}):
        found |= {name: x for name, x in load_file(local).items() if name in names}
    return found


def _packs(stored: Stored) -> Iterator[dict[str, str]]:
    """Names of the weights of each file, the module's own -> logical."""
    pack: dict[str, str] = {}
    size = 0
    for name, logical in stored.weights().items():
        bytes_here = stored.nbytes(logical)
        if pack and size + bytes_here > FILE_BYTES:
            yield pack
            pack, size = {}, 0
        pack[name] = logical
        size += bytes_here
    yield pack


def _write(stored: Stored, names: Mapping[str, str], path: Path) -> None:
    entries = list[Entry]()
    for name, logical in names.items():
        shape, dtype = stored.shape(logical)
        entries.append((name, dtype, shape, partial(_blocks, stored, logical)))
    write_tensors(path, entries)


Entry = tuple[str, str, Sequence[int], Callable[[], Iterable[Tensor]]]
"""Name, torch's name of the dtype, shape, and what gives its numbers block by block, in their order."""


def write_tensors(path: Path, entries: Sequence[Entry]) -> None:
    """A safetensors file: the length of its head, the head, and all tensors one after the other."""
    head: dict[str, Any] = {}
    end = 0
    for name, dtype, shape, _ in entries:
        size = prod(shape) * getattr(torch, dtype).itemsize
        head[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end := end + size]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for *_, blocks in entries:
            for block in blocks():
                file.write(block.contiguous().view(torch.uint8).numpy().data)


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """The same of tensors that are in memory, for whom other files of this process are: safetensors' own are for its
    user alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def _blocks(stored: Stored, logical: str) -> Iterator[Tensor]:
    """A tensor, so many rows at once."""
    shape, dtype = stored.shape(logical)
    if not shape or not stored.nbytes(logical):
        yield stored.tensor(logical).reshape(-1)
        return
    rows = max(1, BLOCK_BYTES // max(1, prod(shape[1:]) * getattr(torch, dtype).itemsize))
    for number in range(ceil_div(shape[0], rows)):
        first = number * rows
        count = min(rows, shape[0] - first)
        wanted = torch.empty(count, *shape[1:], device="meta")
        chunk = Chunk(name=logical, shape=tuple(shape), offsets=(first, *[0] * (len(shape) - 1)), data=wanted)
        yield stored.read(chunk).flatten()
