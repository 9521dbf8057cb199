"""The environment that every test runs in, and what tests of several folders share."""

import faulthandler
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# A deadline is a wall-clock assertion, and a busy machine breaks it.
settings.register_profile("rtrain", deadline=None)
settings.load_profile("rtrain")

# Before torch or Ray is imported by a test: one thread a process, and no limits meant for big shared machines.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(name, value)

SESSION_S = float(os.environ.get("RTRAIN_TESTS_S", "4500"))
"""Seconds after which a session that still runs is stuck: `.ci/run` has 90 minutes, and must say where."""


def pytest_configure(config: pytest.Config) -> None:
    """End a stuck session with every thread's stack, and what it started; pytest's own time-outs are per test."""
    stderr = os.fdopen(os.dup(sys.__stderr__.fileno()), "w")  # before pytest captures it

    def end() -> None:
        stderr.write(f"\nthe test session was not done after {SESSION_S:g} s\n")
        stderr.flush()
        faulthandler.dump_traceback(file=stderr)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(3)

    timer = threading.Timer(SESSION_S, end)
    timer.daemon = True
    timer.start()
    config.add_cleanup(timer.cancel)


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes share the tests (`make test`): a file's stay together, and all that use the one Ray."""
    for item in items:
        file = item.path.relative_to(item.config.rootpath)
        item.add_marker(pytest.mark.xdist_group("ray" if file.parts[1] == "cluster" else str(file)))


@pytest.fixture(scope="module")
def world_of_one() -> Iterator[None]:
    """A process group of this process alone: what saves a checkpoint needs one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)
