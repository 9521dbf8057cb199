"""On a cluster that was there before: job submission, and workers that it does not have."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import RECIPE, ROOT, environment, free_port, last_json, wait_for

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def head(ray_temp_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`ray start --head` with 2 CPUs, its own ports and folder; gives the environment of its clients."""
    port, dashboard = free_port(), free_port()
    env = environment(ray_temp_dir) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    start = [
        BIN / "ray", "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
        f"--temp-dir={ray_temp_dir}/head", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}", "--block",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(list(map(str, start)), env=env, stdout=log, stderr=log, cwd=ROOT)
    try:
        _wait_until_up(port, env)
        wait_for(lambda: _answers(dashboard), "the dashboard, which comes up after the cluster")
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{port}", "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
    finally:
        for started in [*psutil.Process(process.pid).children(recursive=True), process]:
            started.kill()
        process.wait(30)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until_up(port: int, env: dict[str, str]) -> None:
    wait = [str(BIN / "ray"), "health-check", f"--address=127.0.0.1:{port}"]
    for _ in range(60):
        if subprocess.run(wait, env=env, capture_output=True, timeout=60).returncode == 0:
            break
    else:
        raise AssertionError("ray start --head did not come up")


@pytest.mark.slow
def test_job_submit_to_its_end(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "recipe.py").write_text(RECIPE.read_text())
    submit = [
        BIN / "ray", "job", "submit", f"--address={head['DASHBOARD']}", "--working-dir", tmp_path / "job", "--",
        sys.executable, "recipe.py", "train", "--json", "--debug", "--storage", tmp_path / "runs",
    ]  # fmt: skip
    env = {k: v for k, v in head.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(list(map(str, submit)), env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    (line,) = [x for x in done.stdout.splitlines() if x.startswith('{"run"')]
    result = last_json(line)
    assert result["steps"] == 20
    assert Path(result["report"]).exists()


def test_workers_that_the_cluster_does_not_have(head: dict[str, str], tmp_path: Path) -> None:
    words = ["train", "--json", "--cluster.workers", "3", "--cluster.wait_s", "2", "--storage", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(RECIPE), *words], env=head, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "3 workers need 3 CPUs and 0 GPUs, but the cluster has 2 CPUs and 0 GPUs" in done.stderr
    assert "after waiting 2 s" in last_json(done.stdout)["error"]


def test_an_address_where_nothing_is(tmp_path: Path) -> None:
    env = environment("") | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = subprocess.run(
        [sys.executable, str(RECIPE), "train", "--debug"],
        env=os.environ | env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert "nothing answers at RAY_ADDRESS=127.0.0.1" in done.stderr.splitlines()[-1]
