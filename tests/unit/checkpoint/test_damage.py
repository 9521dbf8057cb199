"""Whatever happens to a checkpoint's files, or while they are written: it is noticed, and told as one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored, newest
from rtrain.checkpoint.marker import MANIFEST, MARKER
from rtrain.checkpoint.writing import save
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import whole
from rtrain.storage import Folder

pytestmark = pytest.mark.usefixtures("world_of_one")

SHARD = "rank-00000.safetensors"
FILES = (SHARD, MANIFEST, MARKER)
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def commit(uri: str, *steps: int) -> CheckpointFolders:
    folders = CheckpointFolders(uri)
    for step in steps:
        save(folders, step, [whole("model.w", torch.arange(6.0).reshape(2, 3) + step)], {"state": {"step": step}})
    return folders


def intact(folders: CheckpointFolders, step: int) -> bool:
    try:
        Stored(folders.of(step), step).verify()
    except CheckpointError as error:
        assert str(error).startswith(f"checkpoint step {step}: ")
        assert "\n" not in str(error)
        return False
    return True


@often
@given(name=st.sampled_from(FILES), at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_single_bit_is_noticed(tmp_path: Path, name: str, at: int, bit: int) -> None:
    folders = commit(str(tmp_path), 1)
    path = Path(folders.of(1).path) / name
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert not intact(folders, 1)


@often
@given(name=st.sampled_from(FILES), length=st.integers(0, 10**6))
def test_a_cut_is_noticed(tmp_path: Path, name: str, length: int) -> None:
    folders = commit(str(tmp_path), 1)
    path = Path(folders.of(1).path) / name
    content = path.read_bytes()
    path.write_bytes(content[: length % len(content)])
    assert not intact(folders, 1)


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_noticed(tmp_path: Path, place: str, name: str) -> None:
    folders = commit(str(tmp_path) if place == "local" else f"memory://{uuid4().hex}", 1, 2)
    folders.of(2).discard(name)
    assert not intact(folders, 2)
    found, problems = newest(folders)
    assert found is not None
    assert found.step == 1
    # Without its marker it never was a checkpoint; any other loss is told.
    assert len(problems) == (0 if name == MARKER else 1)
    assert torch.equal(found.tensor("model.w"), torch.arange(6.0).reshape(2, 3) + 1)


@often
@given(damaged=st.sets(st.integers(1, 4)))
def test_the_newest_intact_one_is_taken_and_each_newer_one_is_told(damaged: set[int]) -> None:
    folders = commit(f"memory://{uuid4().hex}", 1, 2, 3, 4)
    for step in damaged:
        folders.of(step).write(SHARD, b"damaged")
    found, problems = newest(folders)
    best = max({1, 2, 3, 4} - damaged, default=None)
    assert (found.step if found else None) == best
    assert [p.split(":")[0] for p in problems] == [
        f"checkpoint step {s}" for s in (4, 3, 2, 1) if best is None or s > best
    ]


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """The `at`-th change that a save makes to storage raises `error` instead."""
    count = 0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise error
            return work(*arguments)

        return call

    for name in ("remove", "adopt", "write"):
        monkeypatch.setattr(Folder, name, counted(getattr(Folder, name)))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_save_that_dies_at_any_point_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folders = commit(str(tmp_path), 1)
    interrupted(monkeypatch, at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        commit(str(tmp_path), 2)
    monkeypatch.undo()
    assert folders.committed() == [1]
    found, problems = newest(folders)
    assert found is not None
    assert (found.step, problems) == (1, [])
    assert intact(commit(str(tmp_path), 2), 2)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("what a client\n of a store says")]
)
def test_a_save_that_fails_at_any_point_commits_nothing_and_frees_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: Exception
) -> None:
    folders = commit(str(tmp_path), 1)
    interrupted(monkeypatch, at, error)
    with pytest.raises(CheckpointError) as raised:
        commit(str(tmp_path), 2)
    monkeypatch.undo()
    said = str(raised.value)
    assert said.startswith(f"checkpoint step 2: rank 0: {type(error).__name__}: ")
    assert "\n" not in said
    assert "Nothing was committed; free space or mend the storage" in said
    assert folders.steps() == folders.committed() == [1]


def test_a_full_disk(tiny_disk: Path) -> None:
    folders = commit(str(tiny_disk), 1)
    (tiny_disk / "others").write_bytes(bytes(900_000))
    with pytest.raises(CheckpointError, match=r"^checkpoint step 2: rank 0: .*[Nn]o space left on device"):
        save(folders, 2, [whole("model.big", torch.zeros(100_000))], {})
    assert folders.steps() == [1]
    assert intact(folders, 1)
    (tiny_disk / "others").unlink()
    save(folders, 2, [whole("model.big", torch.zeros(100_000))], {})
    assert intact(folders, 2)


def test_a_piece_that_nobody_wrote_is_noticed(tmp_path: Path) -> None:
    full = torch.arange(12.0).reshape(4, 3)
    part = whole("model.w", full)
    part.data = full[1:]
    part.offsets = (1, 0)
    folders = CheckpointFolders(str(tmp_path))
    save(folders, 1, [part], {})
    stored = Stored(folders.of(1), 1)
    with pytest.raises(CheckpointError, match="9 of 12 elements of a tensor are stored"):
        stored.tensor("model.w")
    part.data = torch.empty(2, 3, device="meta")
    assert torch.equal(stored.read(part), full[1:3])
