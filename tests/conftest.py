"""The environment that every test runs in, and what tests of several folders share."""

import faulthandler
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


SEED = os.environ.setdefault("RTRAIN_TESTS_SEED", str(datetime.now(UTC).toordinal()))
"""Draws which of the slow tests run where not all do; another each day, and the same in every process of a session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-share", type=float, default=1.0, help="share of the slow tests that runs, drawn by a seed")


def pytest_report_header(config: pytest.Config) -> str:
    return f"slow tests: a share of {config.getoption('--slow-share'):g} (RTRAIN_TESTS_SEED={SEED})"


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


RAYS_OF_THEIR_OWN = (
    "test_cluster",
    "test_first_hour",
    "test_haproxy",
    "test_notebook",
    "test_readme",
    "test_secrets",
    "test_storage",
)
"""Files of `tests/cluster` that neither use the one Ray nor look at what all others leave on the machine."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the two processes of `make test` one has all tests that use the one Ray; those of a file stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if file.startswith("tests/cluster/") and Path(file).stem not in RAYS_OF_THEIR_OWN else file

    return ByRoom(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the slow tests a share stays, the same in every process, whatever else was collected."""
    share = config.getoption("--slow-share")
    dropped = [item for item in items if item.get_closest_marker("slow") and not drawn(item.nodeid, share)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in set(dropped)]


def drawn(nodeid: str, share: float) -> bool:
    """Whether a slow test is among the day's `share`."""
    return random.Random(f"{SEED} {nodeid}").random() < share


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> str:
    """What a test draws the day's cases by, of many that are alike; empty: none is left out."""
    return "" if request.config.getoption("--slow-share") == 1 else SEED


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
