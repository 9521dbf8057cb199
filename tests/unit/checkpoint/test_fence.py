"""Of two attempts of one run only the newer one commits, whatever the older one is in the middle of."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from rtrain.checkpoint import fence
from rtrain.checkpoint.fence import Attempt, Fenced
from rtrain.checkpoint.format import Stored, newest, save
from rtrain.checkpoint.store import MARKER, CheckpointFolders, Folder
from rtrain.parallel.chunks import whole

pytestmark = pytest.mark.usefixtures("world_of_one")


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid4().hex}/run" if request.param == "memory" else str(tmp_path / "run")


def write(attempt: Attempt, step: int, value: float) -> None:
    save(attempt.folders, step, [whole("model.w", torch.full((3,), value))], {}, attempt=attempt)


def value_of(uri: str) -> tuple[int, float]:
    stored, problems = newest(CheckpointFolders(uri))
    assert stored is not None
    assert problems == []
    return stored.step, float(stored.tensor("model.w")[0])


def start(uri: str) -> Attempt:
    return fence.begin(CheckpointFolders(uri))


def test_the_older_attempt_is_told_who_won(uri: str) -> None:
    old = start(uri)
    write(old, 1, 1.0)
    new = start(uri)
    assert (old.number, new.number) == (1, 2)
    with pytest.raises(Fenced, match=r"attempt 2 \(process \d+ on \S+, .* UTC\) has taken it over from attempt 1"):
        write(old, 2, -1.0)
    assert value_of(uri) == (1, 1.0)
    write(new, 2, 2.0)
    assert value_of(uri) == (2, 2.0)
    with pytest.raises(Fenced):
        old.check()
    new.check()


def at(monkeypatch: pytest.MonkeyPatch, method: str, name: Callable[[str], bool], work: Callable[[], Any]) -> None:
    """Do something just before the first operation `method` on a file of such a name."""
    kept, done = getattr(Folder, method), []

    def call(self: Folder, *arguments: Any) -> Any:
        if not done and any(isinstance(a, str) and name(a) for a in arguments):
            done.append(True)
            work()
        return kept(self, *arguments)

    monkeypatch.setattr(Folder, method, call)


MOMENTS = {
    "before its shard is there": ("adopt", lambda n: n.startswith("rank-")),
    "before its manifest is there": ("write", lambda n: n.startswith("manifest")),
    "before its commit": ("create", lambda n: n.endswith(".json")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_taken_over_in_the_middle_of_a_save_at_the_very_same_step(
    uri: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = start(uri)
    write(old, 1, 1.0)

    def other() -> None:
        write(start(uri), 2, 2.0)

    at(monkeypatch, *MOMENTS[moment], other)
    with pytest.raises(Fenced):
        write(old, 2, -1.0)
    assert value_of(uri) == (2, 2.0)


def test_a_commit_whose_writer_stopped_before_its_marker_is_shown_by_the_next(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = start(uri)
    write(old, 1, 1.0)
    seen: list[Any] = []

    def other() -> None:
        seen.append((start(uri), value_of(uri)))

    at(monkeypatch, "write", lambda n: n == MARKER, other)
    write(old, 2, 2.0)  # it had won before it was overtaken: its late marker changes nothing
    new, found = seen[0]
    assert found == value_of(uri) == (2, 2.0)
    with pytest.raises(Fenced):
        write(old, 3, -1.0)
    write(new, 3, 3.0)
    assert value_of(uri) == (3, 3.0)


def test_a_run_that_was_started_anew_is_not_written_by_the_old_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    old = start(uri)
    write(old, 1, 1.0)
    (tmp_path / "run").rename(tmp_path / "run~1")
    write(start(uri), 1, 5.0)
    with pytest.raises(Fenced, match="it was started anew .--fresh. while attempt 1 was still running"):
        write(old, 2, -1.0)
    assert value_of(uri) == (1, 5.0)


def test_a_step_that_is_saved_again_replaces_a_damaged_one_and_leaves_nothing_over(uri: str) -> None:
    write(start(uri), 1, 1.0)
    folder = CheckpointFolders(uri).of(1)
    folder.write("rank-00000.safetensors", b"damaged")
    new = start(uri)
    write(new, 1, 4.0)
    assert value_of(uri) == (1, 4.0)
    assert len(folder.names()) == 3, folder.names()
    write(new, 1, 5.0)
    assert value_of(uri) == (1, 5.0)
    assert len(folder.names()) == 3, folder.names()


def test_of_many_that_begin_at_once_each_gets_a_number_and_one_may_write(uri: str) -> None:
    found: list[Attempt] = []
    threads = [threading.Thread(target=lambda: found.append(start(uri))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.number for a in found) == [1, 2, 3, 4, 5, 6]
    winners = []
    for attempt in found:
        try:
            write(attempt, 1, float(attempt.number))
            winners.append(attempt.number)
        except Fenced:
            pass
    assert winners == [6]
    assert Stored(CheckpointFolders(uri).of(1), 1).tensor("model.w")[0] == 6.0


def test_the_log_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "KEPT", 3)
    attempt = start(str(tmp_path))
    for step in range(8):
        write(attempt, step, 1.0)
    assert attempt.folders.log.names() == ["00000007.json", "00000008.json", "00000009.json"]
    assert start(str(tmp_path)).number == 2
