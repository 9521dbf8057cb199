"""Nothing that lies in a scratch folder outlives its process, however that ends; what is in use or kept stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rtrain import scratch
from rtrain.scratch import Scratch

CHILD = """
import sys, time
from rtrain.scratch import Scratch
mine = Scratch("shard")
(mine.path / "bytes").write_bytes(b"x" * 1000)
print(mine.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_gone_when_it_is_left_and_with_its_object(base: Path) -> None:
    with Scratch("shard") as folder:
        (folder / "file").touch()
        assert list(base.iterdir()) == [folder]
    assert not list(base.iterdir())
    with pytest.raises(ZeroDivisionError), Scratch("shard"):
        _ = 1 // 0
    assert not list(base.iterdir())
    held = Scratch("shard")
    assert held.path.is_dir()
    del held
    assert not list(base.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_left_is_swept_and_not_before(base: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], env=os.environ | {"TMPDIR": str(base)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout
        folder = Path(child.stdout.readline().strip())
        scratch.sweep()
        assert (folder / "bytes").exists(), "it is in use"
        child.send_signal(number)
    assert (folder / "bytes").exists(), "a killed process cannot tidy up: this test would show nothing"
    with Scratch("another"):  # this process's first one here
        assert not folder.exists()


def test_what_is_not_ours_stays(base: Path) -> None:
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    (base / "rtrain-scratch-link-abcdefgh").symlink_to(elsewhere)
    (base / "rtrain-scratch-file-abcdefgh").touch()
    (base / "rtrain-mine").mkdir()
    (base / "rtrain-scratch-left-abcdefgh").mkdir()
    scratch.sweep()
    assert {p.name for p in base.iterdir()} == {
        "elsewhere", "rtrain-scratch-link-abcdefgh", "rtrain-scratch-file-abcdefgh", "rtrain-mine"
    }  # fmt: skip


def test_kept_for_the_user(base: Path) -> None:
    mine = Scratch("curves")
    (mine.path / "file").write_text("all there is")
    kept = mine.keep()
    del mine
    scratch.sweep()
    assert [(kept / "file").read_text(), *base.iterdir()] == ["all there is", kept]
