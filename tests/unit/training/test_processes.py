"""A spawned world ends: with results, with an error, or at its deadline with the stacks of who is stuck."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from rtrain.errors import RunFailed
from rtrain.training.processes import in_world


def third() -> float:
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    return float(total) / 9


def one_sticks(folder: str) -> None:
    """Rank 1 has a child of its own and waits for it; rank 0 waits for rank 1."""
    if dist.get_rank() == 1:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        (Path(folder) / "child").write_text(str(child.pid))
        time.sleep(3600)
    dist.barrier()


def one_raises() -> None:
    if dist.get_rank() == 1:
        raise ValueError("this very one")
    dist.barrier()


def timeouts() -> list[float]:
    """Of the world's group and of one that was made without a time-out, as TorchRec and DeepSpeed make theirs."""
    groups: list[Any] = [dist.group.WORLD, dist.new_group([0, 1])]
    return [g._get_backend(torch.device("cpu")).options._timeout.total_seconds() for g in groups]


def children() -> set[int]:
    """Of this process, but for those that multiprocessing keeps until the end: for semaphores, and to fork from."""
    me = psutil.Process()
    of_python = {
        p.pid for p in me.children() if any(s in " ".join(p.cmdline()) for s in ("resource_tracker", "forkserver"))
    }
    return {p.pid for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE} - of_python


def runs(pid: int) -> bool:
    """A killed grandchild is a zombie until process 1 has looked at it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_results_bit_for_bit() -> None:
    assert in_world(2, third, deadline_s=120) == [1 / 3, 1 / 3]


def test_every_group_has_the_worlds_timeout() -> None:
    for world, made in in_world(2, timeouts, deadline_s=120):
        assert world == made == 180


def test_a_stuck_rank_is_ended_with_its_stack(tmp_path: Path) -> None:
    before = children()  # the Ray of other tests
    with pytest.raises(RunFailed) as failed:
        in_world(2, one_sticks, str(tmp_path), deadline_s=15)
    text = str(failed.value)
    assert "a world of 2 processes was not done after 15 s" in text
    stuck = text[text.index("rank 1:") :]
    assert "in one_sticks" in stuck and "test_processes.py" in stuck
    assert not children() - before
    assert not runs(int((tmp_path / "child").read_text()))


def test_a_rank_that_raises_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = children()
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="this very one"):
        in_world(2, one_raises, deadline_s=120)
    assert not children() - before
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith("pymp-")]  # the socket to whom to fork from


def environment() -> list[str]:
    return [os.environ["RTRAIN_TEST_MARK"], os.environ["RANK"]]


def test_ranks_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of when the process that they are forked from was started."""
    for mark in ("one", "two"):
        monkeypatch.setenv("RTRAIN_TEST_MARK", mark)
        assert in_world(1, environment, deadline_s=120) == [[mark, "0"]]
