"""A storage that cannot create a file on a condition is found out and told, and a lease keeps a second driver out."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from rtrain.checkpoint import fence, lease
from rtrain.checkpoint.fence import Fenced
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import newest
from rtrain.checkpoint.writing import save
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import whole
from rtrain.storage import Folder

pytestmark = pytest.mark.usefixtures("world_of_one")


class Lax(MemoryFileSystem):
    """Takes the condition and does not keep it, as some S3 servers do."""

    protocol = "lax"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("lax://", "memory://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **options)


class Bare(Lax):
    """Knows of no condition."""

    protocol = "bare"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("bare://", "lax://"))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:  # type: ignore[override]
        super().pipe_file(path, value)


@pytest.fixture(params=["lax", "bare"])
def run(request: pytest.FixtureRequest) -> Iterator[str]:
    for kind in (Lax, Bare):
        fsspec.register_implementation(str(kind.protocol), kind, clobber=True)
    yield f"{request.param}://{uuid4().hex}/run"


def write(attempt: fence.Attempt, step: int) -> None:
    save(attempt.folders, step, [whole("model.w", torch.full((3,), float(step)))], {}, attempt=attempt)


def expire(folders: CheckpointFolders) -> None:
    there = folders.log.read_json(lease.LEASE)
    folders.log.write_json(lease.LEASE, there | {"until": there["until"] - 2 * lease.LEASE_S})


def test_a_storage_is_tried_out(run: str, tmp_path: Any) -> None:
    assert not Folder(run).creates_once()
    assert Folder(f"memory://{uuid4().hex}/run").creates_once()
    local = Folder(str(tmp_path / "run"))
    assert local.creates_once()
    assert local.names() == Folder(run).names() == []  # what it was tried with is gone


def test_without_a_condition_a_lease_refuses_the_second(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    folders = CheckpointFolders(run)
    old = fence.take(folders)
    attempt = fence.begin(folders, driver=old.token)
    attempt = fence.begin(folders, driver=old.token)  # a restarted worker of the same driver need not wait
    write(attempt, 1)
    with pytest.raises(CheckpointError, match=r"process \d+ on \S+ holds it for another \d+ s, on a storage without"):
        fence.take(CheckpointFolders(run))
    with pytest.raises(CheckpointError, match="holds it for another"):
        fence.begin(CheckpointFolders(run))
    write(attempt, 2)
    told = capfd.readouterr().err
    assert told.count("cannot create a file on the condition that there is none") == told.count("\n") == 1
    old.release()
    new = fence.take(folders)
    with pytest.raises(Fenced, match="a newer start"):
        write(attempt, 3)
    old.release()  # it is another one's by now
    assert folders.log.read_json(lease.LEASE)["holder"] == new.token
    stored, problems = newest(folders)
    assert stored is not None
    assert (stored.step, problems) == (2, [])


@pytest.mark.parametrize("sign", ["commit", "overtaken", "check"])
def test_a_lease_is_renewed_by_signs_of_life_and_taken_when_it_ran_out(run: str, sign: str) -> None:
    folders = CheckpointFolders(run)
    old = fence.take(folders)
    attempt = fence.begin(folders, driver=old.token)
    expire(folders)
    if sign == "commit":
        write(attempt, 1)
    elif sign == "overtaken":
        assert not attempt.overtaken
    else:
        old.check()
    with pytest.raises(CheckpointError, match="holds it"):
        fence.take(folders)
    expire(folders)
    fence.take(folders)
    with pytest.raises(Fenced):
        attempt.check()
    with pytest.raises(Fenced):
        old.check()


def test_where_there_is_a_condition_there_is_no_lease() -> None:
    folders = CheckpointFolders(f"memory://{uuid4().hex}/run")
    write(fence.begin(folders, driver=fence.take(folders).token), 1)
    assert not folders.log.exists(lease.LEASE)
