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
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored, newest
from rtrain.checkpoint.marker import MARKER
from rtrain.checkpoint.writing import save
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import whole
from rtrain.storage import Folder

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

    at(monkeypatch, "create", lambda n: n == MARKER, other)
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
    folder.write(next(n for n in folder.names() if n.startswith("rank-")), b"damaged")
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
        thread.join(60)
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
    mark = attempt.token[:12]
    left = ["00000001.json", *(f"0000000{n}-{mark}.json" for n in (7, 8, 9))]
    assert attempt.folders.log.names() == left
    assert start(str(tmp_path)).number == 2


ANEW = MOMENTS | {"before its marker is there": ("create", lambda n: n == MARKER)}


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("moment", ANEW)
def test_started_anew_in_the_middle_of_a_save_of_the_old_attempt(
    tmp_path: Path, moment: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs count their entries and their steps alike: whatever the old one adds is seen by nobody."""
    uri = str(tmp_path / "run")
    old, anew = start(uri), list[Attempt]()
    write(old, 1, 1.0)

    def other() -> None:
        (tmp_path / "run").rename(tmp_path / "run~1")
        anew.append(start(uri))
        for step in range(1, steps + 1):
            write(anew[0], step, 10.0 + step)

    at(monkeypatch, *ANEW[moment], other)
    with pytest.raises(CheckpointError):  # fenced, or a file of it was moved away under it
        write(old, 2, -1.0)
    for step in range(steps, 5):
        if step > steps:
            write(anew[0], step, 10.0 + step)
        assert newest(CheckpointFolders(uri))[1] == []
        assert not step or value_of(uri) == (step, 10.0 + step)
    with pytest.raises(Fenced, match="it was started anew"):
        old.check()
    assert start(uri).number == 2


def test_a_log_of_an_older_rtrain_goes_on_and_its_writers_are_fenced(uri: str) -> None:
    folders = CheckpointFolders(uri)
    for number, kind in enumerate(("begin", "commit", "begin"), 1):
        entry = {"kind": kind, "attempt": (number + 1) // 2, "token": "old", "node": "n", "pid": 1, "at": float(number)}
        folders.log.write_json(f"{number:08d}.json", entry)
    first = start(uri)
    assert first.number == 3
    assert not folders.log.create("00000004.json", b"what the older rtrain would write next")
    write(first, 1, 1.0)
    second = start(uri)
    assert second.number == 4
    write(second, 2, 2.0)
    assert value_of(uri) == (2, 2.0)
    assert fence.beginnings(folders)[:2] == [1.0, 3.0]
    assert len(fence.beginnings(folders)) == 4


def prune(attempt: Attempt, keep: int = 1) -> None:
    attempt.folders.prune(keep, set(), check=attempt.check)


def test_an_attempt_that_was_overtaken_deletes_nothing(uri: str) -> None:
    old = start(uri)
    for step in (1, 2):
        write(old, step, float(step))
    new = start(uri)
    half = new.folders.of(3)
    half.write(f"rank-00000{new.names_suffix}.safetensors", b"half")
    with pytest.raises(Fenced):
        prune(old)
    assert new.folders.steps() == [1, 2, 3]
    write(new, 3, 3.0)
    prune(new)
    assert new.folders.steps() == [3]
    assert value_of(uri) == (3, 3.0)


@pytest.mark.parametrize("moment", ["check", "delete"])
def test_taken_over_before_the_check_or_the_delete_of_the_very_same_step(
    uri: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old attempt deletes a half-written step 3; the new one is writing it, and has its shard there by then."""
    old = start(uri)
    write(old, 2, 2.0)
    old.folders.of(3).write("rank-00000-e00000009-0123456789ab.safetensors", b"left by one that died")
    kept = Folder.delete
    begun: list[Attempt] = []

    def other() -> None:
        begun.append(start(uri))
        begun[0].folders.of(3).write(f"rank-00000{begun[0].names_suffix}.safetensors", b"half")

    if moment == "delete":

        def delete(self: Folder, names: list[str]) -> None:
            if not begun and self.uri.endswith("step-00000003"):
                other()
            kept(self, names)

        monkeypatch.setattr(Folder, "delete", delete)
        prune(old)
    else:
        # Listed, and overtaken before the check: nothing is deleted at all.
        check = old.check

        def late() -> None:
            if not begun:
                other()
            check()

        with pytest.raises(Fenced):
            old.folders.prune(1, set(), check=late)
    assert f"rank-00000{begun[0].names_suffix}.safetensors" in begun[0].folders.of(3).names()
    write(begun[0], 3, 3.0)
    assert value_of(uri) == (3, 3.0)


def test_a_worker_of_an_overtaken_driver_begins_no_attempt(uri: str) -> None:
    folders = CheckpointFolders(uri)
    old = fence.take(folders)
    first = fence.begin(folders, driver=old.token)
    write(first, 1, 1.0)
    again = fence.begin(folders, driver=old.token)  # its worker died and was restarted
    assert (first.number, again.number) == (1, 2)
    new = fence.take(CheckpointFolders(uri))
    with pytest.raises(Fenced, match=r"a newer start \(process \d+ on \S+, .* UTC\) has taken it over from attempt 2"):
        write(again, 2, -1.0)
    with pytest.raises(Fenced, match=r"a newer start"):
        fence.begin(folders, driver=old.token)
    third = fence.begin(folders, driver=new.token)
    assert third.number == 3
    with pytest.raises(Fenced, match=r"attempt 3 \(process"):
        fence.begin(folders, driver=old.token)
    with pytest.raises(Fenced, match=r"attempt 3 \(process"):
        old.check()
    write(third, 2, 2.0)
    new.check()
    assert value_of(uri) == (2, 2.0)


def test_a_driver_shows_the_last_commit_and_fences_in_the_middle_of_a_save(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = CheckpointFolders(uri)
    old = fence.begin(folders, driver=fence.take(folders).token)
    at(monkeypatch, "create", lambda n: n == MARKER, lambda: fence.take(CheckpointFolders(uri)))
    write(old, 1, 1.0)
    assert value_of(uri) == (1, 1.0)
    with pytest.raises(Fenced):
        write(old, 2, -1.0)


def test_a_driver_of_a_run_that_was_started_anew_is_told(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    old = fence.take(CheckpointFolders(uri))
    (tmp_path / "run").rename(tmp_path / "run~1")
    for _ in range(2):
        with pytest.raises(Fenced, match="started anew"):
            old.check()
        with pytest.raises(Fenced):
            fence.begin(CheckpointFolders(uri), driver=old.token)
        fence.begin(CheckpointFolders(uri), driver=fence.take(CheckpointFolders(uri)).token)
