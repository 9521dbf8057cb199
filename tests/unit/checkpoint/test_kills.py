"""A writing process is killed at any of its file operations: what is there afterwards is whole and true.

Python tells every operation on a file to its audit hooks before it is done; at the chosen one this
process plays dead: the operation and every later one raise, those of clean-up code too, as if the
process were gone. What was being written may be cut off anywhere.
"""

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtrain.checkpoint import fence, shards
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import newest
from rtrain.checkpoint.writing import save
from rtrain.parallel.chunks import Chunk, whole
from rtrain.storage import sha256_of

pytestmark = pytest.mark.usefixtures("world_of_one")

OPERATIONS = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.truncate", "shutil.rmtree",
    "shutil.move", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp", "os.listdir", "os.scandir",
}  # fmt: skip


class Killed(BaseException):
    """The process is gone: no `except Exception` sees it."""


class Fate:
    """Counts the operations below a folder, and kills at one of them."""

    def __init__(self) -> None:
        self.root, self.at, self.count, self.dead = "", 0, 0, False
        self.thread = 0
        self.killed_by: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root or event not in OPERATIONS or threading.get_ident() != self.thread:
            return
        if not any(isinstance(a, str | os.PathLike) and str(a).startswith(self.root) for a in arguments):
            return
        self.count += 1
        self.strike(event)

    def strike(self, event: str) -> None:
        """Die if it is time, and stay dead."""
        if self.count == self.at and not self.dead:
            self.dead = True
            self.killed_by.append(event)
        if self.dead:
            raise Killed


FATE = Fate()
sys.addaudithook(FATE)  # cannot be taken away again; it does nothing while its root is empty


@contextmanager
def killed_at(root: Path, at: int) -> Iterator[None]:
    FATE.root, FATE.at, FATE.count, FATE.dead, FATE.thread = str(root), at, 0, False, threading.get_ident()
    try:
        yield
    finally:
        FATE.root = ""


def tensors(step: int, attempt: int) -> list[Chunk]:
    """Which step, and by whom, can be told from any element."""
    return [whole("model.w", torch.full((50, 4), float(step))), whole("model.a", torch.full((7,), float(attempt)))]


def lives(root: Path, told: list[int], until: int) -> None:
    """An attempt: goes on from the newest checkpoint, saves every step, prunes; `told`: what it saw committed."""
    folders = CheckpointFolders(str(root))
    attempt = fence.begin(folders)
    stored, _ = newest(folders, note=True)
    first = stored.step + 1 if stored else 1
    for step in range(first, until):
        save(folders, step, tensors(step, attempt.number), {"attempt": attempt.number}, attempt=attempt)
        told.append(step)
        folders.prune(2, set())


def check(root: Path, told: list[int]) -> None:
    folders = CheckpointFolders(str(root))
    stored, problems = newest(folders)
    assert problems == []
    if stored is None:
        assert told == [], f"steps {told} were committed, and none can be read"
        return
    assert stored.step >= max(told, default=0)
    assert torch.equal(stored.tensor("model.w"), torch.full((50, 4), float(stored.step)))
    assert torch.equal(stored.tensor("model.a"), torch.full((7,), float(stored.meta["attempt"])))


def test_two_hundred_kills_at_random_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(20261123)
    write_all = shards._write_all

    def torn(file: int, block: memoryview) -> None:
        """A shard is written by plain write(2), which tells no hook: it is cut off here."""
        FATE.count += 1
        if FATE.root and FATE.count == FATE.at:
            write_all(file, block[: chance.randrange(len(block))])
            FATE.strike("write")
        write_all(file, block)

    monkeypatch.setattr(shards, "_write_all", torn)
    kills, root, told = 0, tmp_path, list[int]()
    while kills < 200:
        if kills % 10 == 0:  # another run; each goes through ten kills
            root, told = tmp_path / str(kills), []
        try:
            with killed_at(root, chance.randint(1, 120)):
                lives(root, told, max(told, default=0) + 6)
        except Killed:
            kills += 1
        check(root, told)
    assert len(FATE.killed_by) == 200
    assert {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "write"} <= set(FATE.killed_by)
    # And nothing is left over by the dead, once a life was lived to its end.
    lives(root, told, max(told, default=0) + 4)
    folders = CheckpointFolders(str(root))
    assert folders.steps() == folders.committed()
    assert (len(folders.steps()), folders.steps()[-1]) == (2, told[-1])
    assert {len(folders.of(step).names()) for step in folders.steps()} == {3}


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.tuples(st.sampled_from(list(shards.DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_a_shard_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, described: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    from safetensors import safe_open

    described.pop("__metadata__", None)
    written = {name: (torch.rand(shape) * 9 - 3).to(dtype) for name, (dtype, shape) in described.items()}
    path = tmp_path_factory.mktemp("shard") / "f.safetensors"
    said = shards.write(path, written)
    assert said == {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(written)
        for name, tensor in written.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
