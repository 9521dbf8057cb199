"""A job whose storage is not a local folder: what it fetches of its checkpoints goes with it, also when it fails."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from rtrain.errors import RunFailed
from rtrain.run import Run
from tests.unit.training.jobs import At, job
from tests.unit.training.test_resume import named


@pytest.fixture
def storage() -> Iterator[str]:
    uri = f"memory://{uuid4().hex}"
    yield uri
    fsspec.filesystem("memory").rm(uri, recursive=True)


def test_no_shard_stays_of_a_resume_that_fails(
    tiny: Run, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    run = named(tiny, "far", storage=storage)
    with pytest.raises(RunFailed):
        job(run, At(12))
    fetched: list[str] = []

    def look() -> RuntimeError:
        fetched.extend(path.name for path in scratch.rglob("*.safetensors"))
        return RuntimeError("now")

    # Its frames, and all that they hold, live as long as it does, as in a driver that goes on.
    with pytest.raises(RunFailed) as held:
        job(run, At(20, look))
    assert fetched, "it resumed from nothing: this test would show nothing"
    assert not list(scratch.iterdir()), held
