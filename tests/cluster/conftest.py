"""One Ray for all tests of this folder, joined by the test process; and what they share."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "dlrm_movielens.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def ray_temp_dir() -> Iterator[str]:
    # Ray's socket paths must stay under 107 characters, so pytest's own long folders will not do.
    from rtrain.launch.embedded import end, processes_in

    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder
        # A recipe that a test killed leaves processes, which would go on writing into it.
        end(processes_in(Path(folder)))


@pytest.fixture(scope="session")
def joined_ray(ray_temp_dir: str) -> Iterator[None]:
    """A Ray that rtrain.train() in this process uses, so that each run saves its start and stop."""
    from rtrain.launch import embedded, session

    for name, value in {**session.DEFAULTS, **session.EMBEDDED}.items():
        os.environ.setdefault(name, value)
    os.environ[embedded.TEMP_DIR] = ray_temp_dir
    with embedded.embedded_ray(num_cpus=4):
        yield


# The main job cut short, with enough checkpoints that a kill finds the run under way.
SHORT = {
    "global_batch": 256,
    "duration.steps": 120,
    "log_every_steps": 1,
    "checkpoint.every.steps": 10,
    "evaluation.every.steps": 60,
    "evaluation.patience": "none",
    "handoff.serve_check": "false",
}


@pytest.fixture
def small_run(tmp_path: Path) -> Any:
    """The main job's recipe, short."""
    import rtrain
    from recipes.dlrm_movielens import run

    return rtrain.override(run(), {**SHORT, "name": "small", "storage": str(tmp_path / "runs")})


def environment(ray_temp_dir: str) -> dict[str, str]:
    """Of a recipe started as a person would: its own Ray, its own folders."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "RANK", "WORLD_SIZE"))}
    return kept | {"PYTHONPATH": str(ROOT), "RTRAIN_RAY_TEMP_DIR": ray_temp_dir}


@pytest.fixture
def recipe(tmp_path: Path, ray_temp_dir: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the main job's recipe in a process of its own, in a folder of its own."""

    def start(*words: str, python: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python, str(RECIPE), *words],
            cwd=tmp_path,
            env=environment(ray_temp_dir),
            capture_output=True,
            text=True,
            timeout=240,
        )

    return start


@pytest.fixture
def place(tmp_path: Path, ray_temp_dir: str) -> Iterator[Any]:
    """A `places.Place`."""
    from tests.cluster.places import Place

    made = Place(tmp_path, Path(ray_temp_dir) / uuid.uuid4().hex[:6])
    yield made
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)


def last_json(text: str) -> dict[str, Any]:
    """The JSON object on the last line of an output."""
    value: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return value


ANY = random.SystemRandom()
"""Not the module's: what a test seeds would give the same port again, on which nobody listens yet."""
GIVEN = set[int]()


def free_port() -> int:
    """A port of localhost, each once, that nobody listens on, and that the kernel gives to no one who asks for any."""
    while True:
        port = ANY.randrange(20_000, 32_000)  # above Ray's own, below those of outgoing connections
        if port in GIVEN:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            GIVEN.add(port)
            return port


def wait_for(condition: Callable[[], Any], what: str, *, timeout_s: float = 120) -> Any:
    """Poll until `condition` gives something true; the limit only keeps a broken test from hanging."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


def history_of(folder: str) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl so far."""
    path = Path(folder) / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def committed_step(folder: Path) -> int:
    """The newest committed checkpoint of a run under way; 0 when there is none."""
    steps = [int(p.parent.name.removeprefix("step-")) for p in folder.glob("checkpoints/step-*/COMMITTED")]
    return max(steps, default=0)


@pytest.fixture(scope="module")
def serve_port(joined_ray: None) -> int:
    """A port that nothing listens on, for a Serve that begins anew: a cluster's has one port while it runs."""
    from ray import serve

    serve.shutdown()
    return free_port()
