"""Folders of any kind: what is written is whole, and what is deleted stops being a checkpoint first."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtrain.checkpoint.folders import DAMAGED, CheckpointFolders
from rtrain.checkpoint.marker import MANIFEST, MARKER
from rtrain.storage import Folder, check_writable, sha256_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder, on disk and on a store that knows no folders."""
    return Folder(f"memory://{uuid4().hex}/run/" if request.param == "memory" else str(tmp_path / "run"))


def test_a_folder_that_is_not_there_is_empty(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists("a")
    folder.discard("a")
    folder.remove()


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("a.bin", b"\x00\xff")
    folder.write("a.bin", b"\x01")
    folder.write_json("b.json", {"x": [1, None]})
    folder.child("deep").child("er").write("c", b"")
    assert folder.names() == ["a.bin", "b.json", "deep"]
    assert (folder.read("a.bin"), folder.size("a.bin")) == (b"\x01", 1)
    assert folder.read_json("b.json") == {"x": [1, None]}
    assert folder.child("deep/er").read("c") == b""
    folder.discard("a.bin")
    assert not folder.exists("a.bin")
    folder.remove()
    assert folder.names() == []


def test_a_file_goes_in_and_comes_out(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "made-here"
    source.write_bytes(b"content")
    folder.adopt(source, "there")
    assert not source.exists()
    assert folder.names() == ["there"]
    (tmp_path / "scratch").mkdir()
    fetched = folder.fetch("there", tmp_path / "scratch")
    assert fetched.read_bytes() == b"content"
    assert sha256_of(fetched) == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


def test_a_reader_never_sees_half_of_a_file(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    contents = [bytes([n]) * 200_000 for n in range(2)]
    folder.write("f", contents[0])
    done = threading.Event()

    def write() -> None:
        for n in range(200):
            folder.write("f", contents[n % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert folder.read("f") in contents
    writer.join(60)
    assert folder.names() == ["f"]


TOO_LARGE = """
import resource, signal, sys
from rtrain.storage import Folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Folder(sys.argv[1])
folder.write("f", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    folder.write("f", bytes(2000))
except OSError as error:
    print(type(error).__name__, folder.names(), folder.read("f"))
"""


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    assert done.stdout == "OSError ['f'] b'old'\n"


def test_a_storage_that_can_be_written_is_left_as_it_was(folder: Folder) -> None:
    folder.write("a", b"")
    check_writable(folder.uri)
    assert folder.names() == ["a"]


def test_steps_are_what_looks_like_one(folder: Folder) -> None:
    folders = CheckpointFolders(f"{folder.uri}/")
    for step in (30, 5, 100):
        folders.of(step).write(MARKER, b"")
    folders.of(7).write("manifest.json", b"")
    for name in ("step-1", "step-000000050", "other-step-00000009", "step-00000009.old", "temporary"):
        folders.root.child(name).write(MARKER, b"")
    assert folders.steps() == [5, 7, 30, 100]
    assert folders.committed() == [5, 30, 100]
    assert folders.of(100).uri == f"{folder.uri}/checkpoints/step-00000100"


def commit(folders: CheckpointFolders, step: int, *, content: bytes = b"tensors") -> Folder:
    """A committed step, as small as it can be."""
    folder = folders.of(step)
    manifest = json.dumps({"files": {"rank-00000.safetensors": {"bytes": 7}}}).encode()
    folder.write("rank-00000.safetensors", content)
    folder.write(MANIFEST, manifest)
    folder.write(MARKER, hashlib.sha256(manifest).hexdigest().encode())
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    committed=st.sets(st.integers(0, 9)),
    damaged=st.dictionaries(st.integers(0, 9), st.sampled_from(["cut", "gone", "manifest", "noted"])),
    begun=st.sets(st.integers(0, 9)),
    keep=st.integers(1, 4),
    spare=st.sets(st.integers(0, 9), max_size=1),
)
def test_pruning_leaves_the_newest_intact_ones_and_the_spared(
    committed: set[int], damaged: dict[int, str], begun: set[int], keep: int, spare: set[int]
) -> None:
    folders = CheckpointFolders(f"memory://{uuid4().hex}")
    for step in begun:
        folders.of(step).write("rank-00000.safetensors", b"")
    for step in committed:
        commit(folders, step)
    damaged = {step: how for step, how in damaged.items() if step in committed}
    for step, how in damaged.items():
        if how == "cut":
            folders.of(step).write("rank-00000.safetensors", b"tens")
        elif how == "gone":
            folders.of(step).discard("rank-00000.safetensors")
        elif how == "manifest":
            folders.of(step).write(MANIFEST, b"{}")
        else:
            folders.of(step).write(DAMAGED, b"altered at its size")
    gone = folders.prune(keep, spare)
    intact = set(sorted(committed - set(damaged))[-keep:])
    left = intact | (spare & committed) | {s for s in damaged if s > min(intact, default=-1)}
    assert set(folders.committed()) == left
    assert set(folders.steps()) == left | (spare & begun)
    assert set(gone) == (committed | begun) - set(folders.steps())


def test_deleting_takes_the_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = CheckpointFolders(str(tmp_path))
    for step in (1, 2):
        commit(folders, step)

    def dies(self: Folder, names: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        folders.prune(1, set())
    monkeypatch.undo()
    assert folders.committed() == [2]
    assert folders.of(1).names() == [MANIFEST, "rank-00000.safetensors"]
    assert folders.prune(1, set()) == [1]


def test_one_that_cannot_be_deleted_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = CheckpointFolders(str(tmp_path))
    for step in (1, 2, 3, 4):
        commit(folders, step)
    delete = Folder.delete

    def refuses(self: Folder, names: list[str]) -> None:
        if self.uri == folders.of(2).uri:
            raise PermissionError("kept")
        delete(self, names)

    monkeypatch.setattr(Folder, "delete", refuses)
    with pytest.raises(PermissionError, match="kept"):
        folders.prune(1, set())
    assert folders.steps() == [2, 4]


def test_left_over_files_that_cannot_be_deleted_keep_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = CheckpointFolders(str(tmp_path))
    for step in (1, 2, 3):
        commit(folders, step)
    folders.of(3).write("left-over", b"of a writer that died")
    delete = Folder.delete

    def refuses(self: Folder, names: list[str]) -> None:
        if self.uri == folders.of(3).uri:
            raise PermissionError("kept")
        delete(self, names)

    monkeypatch.setattr(Folder, "delete", refuses)
    with pytest.raises(PermissionError, match="kept"):
        folders.prune(1, set())
    assert folders.steps() == [3]


def test_deleting_some_files_leaves_the_others_and_an_empty_folder_goes(folder: Folder) -> None:
    inside = folder.child("inside")
    for name in ("a", "b"):
        inside.write(name, b"")
    inside.delete(["a", "c"])
    assert inside.names() == ["b"]
    inside.delete(["b"])
    assert folder.names() == []
    inside.delete(["b"])


def test_a_new_folder_is_made_durable_in_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a power cut would find it: every name that was made is synced before the marker says that all is there."""
    synced, fsync = list[str](), os.fsync

    def seen(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    source = tmp_path / "made-here"
    source.write_bytes(b"content")
    folder = CheckpointFolders(str(tmp_path / "runs" / "one")).of(1)
    folder.adopt(source, "rank-00000.safetensors")
    assert synced == [str(tmp_path / p) for p in ("", "runs", "runs/one", "runs/one/checkpoints")] + [folder.path]
    synced.clear()
    folder.write(MARKER, b"")
    assert synced[-1] == folder.path and len(synced) == 2
    other = CheckpointFolders(str(tmp_path / "runs" / "one")).of(2)
    synced.clear()
    other.write(MANIFEST, b"{}")
    assert synced[0] == str(tmp_path / "runs/one/checkpoints")
