"""One safetensors file, written and hashed in one pass.

The library's `save_file` copies each tensor and leaves nothing to hash but the file, which would be
read back. Here a thread hashes the tensors' own memory while it is written. The layout is that of
https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, the bytes of all
tensors without a gap. Reading is the library's.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
BLOCK = 8 << 20
"""Bytes that are written and hashed at a time."""


def write(path: Path, tensors: Mapping[str, Tensor], went_on: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write CPU tensors to a new file, synced to disk; returns its `bytes` and `sha256`.

    `went_on` is called after each block.

    Raises:
        OSError: it cannot be written.
        KeyError: a dtype that safetensors does not know.
    """
    # Widest first, as the library does it: so every tensor is aligned to its dtype.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = dict[str, Any](), 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        hashing = _Hashing([len(text).to_bytes(8, "little") + text, *(_bytes(tensors[name]) for name in order)])
        try:
            for block in hashing.blocks():
                _write_all(file.fileno(), block)
                went_on()
        finally:
            digest = hashing.end()
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + offset, "sha256": digest}


class _Hashing:
    """Hashes the same blocks in a thread; both hashlib and write() let the other one run."""

    def __init__(self, parts: list[Any]):
        self._parts = [memoryview(part) for part in parts if len(part)]
        self._sha = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="rtrain-hash", daemon=True)
        self._thread.start()

    def blocks(self) -> Iterator[memoryview]:
        for part in self._parts:
            for start in range(0, len(part), BLOCK):
                yield part[start : start + BLOCK]

    def _run(self) -> None:
        for block in self.blocks():
            self._sha.update(block)

    def end(self) -> str:
        self._thread.join()  # without a limit: it only computes, of memory that is there
        return self._sha.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    """The tensor's own memory, without a copy where it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy() if tensor.numel() else b""


def _write_all(file: int, block: memoryview) -> None:
    while len(block):
        block = block[os.write(file, block) :]
