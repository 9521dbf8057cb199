"""What is committed is whole and reads back at any rectangle; what is not whole does not exist."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtrain.checkpoint import shards
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import FORMAT, Stored, newest
from rtrain.checkpoint.marker import MANIFEST, MARKER
from rtrain.checkpoint.writing import save
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import Chunk, whole
from rtrain.storage import Folder, check_writable
from rtrain.storage.patience import Patience

pytestmark = pytest.mark.usefixtures("world_of_one")


def pieces(name: str, full: torch.Tensor, row: int, column: int) -> list[Chunk]:
    """`full` cut into up to four rectangles, as four ranks might hold it."""
    found = []
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            data = full[rows, columns]
            if data.numel():
                found.append(Chunk(name, tuple(full.shape), (rows.start, columns.start), data))
    return found


def committed(uri: str, step: int = 7) -> Stored:
    save(CheckpointFolders(uri), step, [whole("model.w", torch.arange(6.0).reshape(2, 3))], {"state": {"step": step}})
    return Stored(CheckpointFolders(uri).of(step), step)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 7),
    cuts=st.tuples(st.integers(0, 9), st.integers(0, 7)),
    window=st.tuples(*[st.integers(0, 8)] * 4),
)
def test_any_rectangle_of_any_cutting(
    tmp_path: Path, rows: int, columns: int, cuts: tuple[int, int], window: tuple[int, ...]
) -> None:
    full = torch.arange(float(rows * columns)).reshape(rows, columns)
    folders = CheckpointFolders(str(tmp_path))
    save(folders, 1, pieces("model.t", full, min(cuts[0], rows), min(cuts[1], columns)), {})
    stored = Stored(folders.of(1), 1)
    stored.verify()
    assert torch.equal(stored.tensor("model.t"), full)
    top, left = window[0] % rows, window[1] % columns
    wanted = full[top : top + 1 + window[2], left : left + 1 + window[3]]
    asked = Chunk("model.t", (rows, columns), (top, left), torch.empty_like(wanted, device="meta"))
    assert torch.equal(stored.read(asked), wanted)


def test_scalars_integers_and_bytes(tmp_path: Path) -> None:
    folders = CheckpointFolders(str(tmp_path))
    values = {"step": torch.tensor(3.0), "rng": torch.arange(5, dtype=torch.uint8), "n": torch.tensor([2**40])}
    save(folders, 1, [whole(k, v) for k, v in values.items()], {"state": {"a": 1}})
    stored = Stored(folders.of(1), 1)
    for name, value in values.items():
        assert torch.equal(stored.tensor(name), value)
        assert stored.tensor(name).dtype == value.dtype
    assert stored.meta["state"] == {"a": 1}
    assert sorted(stored.names("r")) == ["rng"]


def damage(how: str, folder: Path) -> None:
    shard = folder / "rank-00000.safetensors"
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif how == "altered":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif how == "manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace("model.w", "model.v"))
    elif how == "no marker":
        (folder / MARKER).unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "manifest lists 1 shards, 0 present .missing rank-00000.safetensors"),
        ("truncated", "rank-00000.safetensors has .* bytes, not"),
        ("altered", "rank-00000.safetensors was altered"),
        ("manifest", "manifest.json or COMMITTED was altered"),
    ],
)
def test_damage_is_found_and_the_one_before_is_used(tmp_path: Path, how: str, said: str) -> None:
    committed(str(tmp_path), 1)
    committed(str(tmp_path), 2)
    folders = CheckpointFolders(str(tmp_path))
    damage(how, tmp_path / "checkpoints" / "step-00000002")
    with pytest.raises(CheckpointError, match=f"checkpoint step 2: .*{said}"):
        Stored(folders.of(2), 2).verify()
    found, problems = newest(folders)
    assert found is not None
    assert found.step == 1
    assert len(problems) == 1
    assert problems[0].startswith("checkpoint step 2: ")


def test_without_its_marker_it_does_not_exist(tmp_path: Path) -> None:
    committed(str(tmp_path), 1)
    committed(str(tmp_path), 2)
    damage("no marker", tmp_path / "checkpoints" / "step-00000002")
    folders = CheckpointFolders(str(tmp_path))
    found, problems = newest(folders)
    assert found is not None
    assert (found.step, problems) == (1, [])
    # A half-written folder of the same step is replaced, not mixed with.
    (tmp_path / "checkpoints" / "step-00000002" / "rank-00001.safetensors").write_bytes(b"left behind")
    committed(str(tmp_path), 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "step-00000002").iterdir()) == [
        MARKER,
        MANIFEST,
        "rank-00000.safetensors",
    ]


def rewrite(tmp_path: Path, change: dict[str, Any]) -> Folder:
    """A manifest with other values, its marker made to fit: what an attacker with write access could do."""
    import hashlib

    folder = tmp_path / "checkpoints" / "step-00000007"
    manifest = json.dumps(json.loads((folder / MANIFEST).read_text()) | change)
    (folder / MANIFEST).write_text(manifest)
    (folder / MARKER).write_text(hashlib.sha256(manifest.encode()).hexdigest())
    return CheckpointFolders(str(tmp_path)).of(7)


def test_a_path_outside_the_folder_is_refused(tmp_path: Path) -> None:
    committed(str(tmp_path))
    folder = rewrite(tmp_path, {"files": {"../../secret.safetensors": {"bytes": 1, "sha256": ""}}})
    with pytest.raises(CheckpointError, match=r"names a file '\.\./\.\./secret.safetensors'"):
        Stored(folder, 7)


def test_a_chunk_in_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    stored = committed(str(tmp_path))
    tensors = stored.meta["tensors"]
    tensors["model.w"]["chunks"][0]["file"] = "../../secret.safetensors"
    folder = rewrite(tmp_path, {"tensors": tensors})
    with pytest.raises(CheckpointError, match=r"\.\./\.\./secret.safetensors"):
        Stored(folder, 7).tensor("model.w")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    committed(str(tmp_path))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1} is newer than {FORMAT}. Update rtrain"):
        Stored(rewrite(tmp_path, {"format": FORMAT + 1}), 7)


def test_another_model_is_named(tmp_path: Path) -> None:
    stored = committed(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model.w has shape \[2, 3\] there, but \[2, 4\] in this model"):
        stored.read(whole("model.w", torch.empty(2, 4)))
    with pytest.raises(CheckpointError, match="it has no tensor 'model.v'"):
        stored.read(whole("model.v", torch.empty(2, 3)))


def test_pruning_keeps_the_newest_and_the_spared(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        committed(str(tmp_path), step)
    folders = CheckpointFolders(str(tmp_path))
    (tmp_path / "checkpoints" / "step-00000003" / MARKER).unlink()
    assert folders.prune(1, {1}) == [2, 3]
    assert folders.steps() == folders.committed() == [1, 4]


def test_on_a_remote_store() -> None:
    uri = "memory://bucket/run"
    stored = committed(uri)
    stored.verify()
    assert torch.equal(stored.tensor("model.w"), torch.arange(6.0).reshape(2, 3))
    assert stored.uri == f"{uri}/checkpoints/step-00000007"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


CHILD = """
import resource, sys, torch, torch.distributed as dist
from rtrain.checkpoint.writing import save
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import whole
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(CheckpointFolders(sys.argv[1]), 5, [whole("model.big", torch.zeros(100_000))], {})
except CheckpointError as error:
    print(error)
"""


def test_a_file_that_cannot_be_written_commits_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=120,
    )
    assert done.stdout.startswith("checkpoint step 5: rank 0: "), done.stderr
    assert "Nothing was committed" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert CheckpointFolders(str(tmp_path)).committed() == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_write_is_whole_or_absent(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a.json", b"old")
    os.chmod(tmp_path, 0o755)
    with pytest.raises(TypeError):
        folder.write("a.json", "not bytes")  # type: ignore[arg-type]
    assert folder.read("a.json") == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"storage: .*file/inside' cannot be written .*Set storage to"):
        check_writable(str(tmp_path / "file" / "inside"))
    with pytest.raises(CheckpointError, match=r"storage: 'nosuch://x' cannot be written"):
        check_writable("nosuch://x")


def test_slow_work_shows_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block that is written and each piece that is read: so a long checkpoint is not taken for a hang."""
    monkeypatch.setattr(shards, "BLOCK", 1000)
    beats: list[None] = []
    folders = CheckpointFolders(str(tmp_path), Patience(went_on=lambda: beats.append(None)))
    save(folders, 1, [whole("model.w", torch.zeros(5000))], {})
    assert len(beats) >= 20
    stored = Stored(folders.of(1), 1)
    beats.clear()
    stored.tensor("model.w")
    assert len(beats) == 1
