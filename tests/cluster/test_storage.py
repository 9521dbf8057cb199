"""A run whose storage is an S3 bucket: a real server, spoken to over HTTP by every worker."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from tests.cluster.conftest import free_port, wait_for


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(up, "moto's server")
        _environment(monkeypatch, port)
        yield "s3://runs"
    finally:
        server.kill()
        server.wait(30)


def _environment(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("runs")


@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts, the first of which took over 240 s beside other work
def test_train_and_resume_on_s3(small_run: Any, bucket: str, ray_temp_dir: str) -> None:
    """In a process of its own: the workers must have the bucket's address in their environment."""
    from tests.cluster.conftest import RECIPE, SHORT, environment, last_json

    words = [w for k, v in (SHORT | {"duration.steps": 30}).items() for w in (f"--{k}", str(v))]
    command = [sys.executable, str(RECIPE), "train", "--json", "--name", "far", "--storage", bucket, *words]
    env = environment(ray_temp_dir) | {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    first = subprocess.run(command, env=env, capture_output=True, text=True, timeout=440)
    assert first.returncode == 0, first.stderr
    result = last_json(first.stdout)
    assert result["checkpoint"] == f"{bucket}/far/checkpoints/step-{result['best_step']:08d}"
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    assert fs.exists(f"{result['checkpoint']}/COMMITTED")
    assert b"<svg" in fs.cat_file(result["report"])
    # Inline, from another process: the run goes on from what is in the bucket.
    longer = [*command, "--duration.steps", "40", "--launcher", "inline"]
    second = subprocess.run(longer, env=env, capture_output=True, text=True, timeout=440)
    assert second.returncode == 0, second.stderr
    assert "resumes from step 30" in second.stderr
    assert last_json(second.stdout)["steps"] == 40
