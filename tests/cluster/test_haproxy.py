"""Behind HAProxy, Ray Serve's ingress for production: the same answers, and a replica that dies fails no request."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from rtrain.export.artifact import Predictor
from tests.cluster.conftest import environment, free_port, wait_for
from tests.cluster.load import load
from tests.unit.release.runs import ITEMS, USERS, run_of, write_rows
from tests.unit.training.jobs import train


def row_of(draw: np.random.Generator) -> dict[str, float]:
    return {"user": int(draw.integers(USERS)), "item": int(draw.integers(ITEMS)), "price": float(draw.normal())}


@pytest.mark.slow
def test_one_of_two_replicas_is_killed_behind_haproxy(tmp_path: Path, ray_temp_dir: str) -> None:
    write_rows(tmp_path)
    export, port = str(train(run_of(tmp_path, "good"))["export"]), free_port()
    env = environment(ray_temp_dir) | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()), "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }  # fmt: skip
    words = [sys.executable, "-m", "rtrain", "serve", export, "--replicas", "2", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        served = subprocess.Popen(words, env=env, cwd=tmp_path, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert served.poll() is None, (tmp_path / "log").read_text()[-2000:]
        try:
            return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def replicas() -> list[psutil.Process]:
        return [one for one in psutil.Process(served.pid).children(recursive=True) if "ServeReplica" in one.name()]

    def ask(http: httpx.Client, draw: np.random.Generator, headers: dict[str, str]) -> httpx.Response:
        return http.post(f"{url}/predict", json={"rows": [row_of(draw)]}, headers=headers)

    try:
        wait_for(answers, "it answers")
        assert [one for one in psutil.Process(served.pid).children(recursive=True) if one.name() == "haproxy"]
        rows = [row_of(np.random.default_rng(7)) for _ in range(20)]
        through = httpx.post(f"{url}/predict", json={"rows": rows}, timeout=60).json()["predictions"]
        assert np.abs(np.array(through) - Predictor(export).predict(rows)).max() < 1e-6
        with load(ask) as seen:
            wait_for(lambda: seen.statuses[200] > 100, "requests went on")
            wait_for(lambda: len(replicas()) >= 2, "both replicas are there")
            os.kill(replicas()[0].pid, signal.SIGKILL)
            before = seen.statuses[200]
            wait_for(lambda: seen.statuses[200] > before + 300, "requests went on")
        assert not seen.failed, seen.statuses
    finally:
        served.send_signal(signal.SIGINT)
        try:
            served.wait(60)
        finally:
            served.kill()
