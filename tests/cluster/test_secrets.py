"""What only the environment may know is nowhere in what a run leaves, and a secret on the command line is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import RECIPE, environment, last_json

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "AWS_SESSION_TOKEN": "planted-aws-session",
    "WANDB_API_KEY": "planted0wandb0key0000000000000000000000f",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "HF_TOKEN": "planted-hub-token",
    "RAY_AUTH_TOKEN": "planted-ray-token",
    "PIP_INDEX_URL": "https://planted-user:planted-index@localhost/simple",
}


def found_in(folder: Path) -> list[str]:
    """Files below whose name or bytes hold a planted secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20, files
    return [str(path) for path in files if "planted" in path.name or b"planted" in path.read_bytes()]


@pytest.mark.slow
def test_no_secret_is_written_or_shown(tmp_path: Path, ray_temp_dir: str) -> None:
    env = environment(ray_temp_dir) | SECRETS | {"WANDB_MODE": "offline"}
    (tmp_path / "net").write_text(f"machine api.wandb.ai login user password {SECRETS['WANDB_API_KEY']}\n")
    env["NETRC"] = str(tmp_path / "net")

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
        )

    train = [str(RECIPE), "train", "--debug", "--json", "--name", "leaky"]
    done = start(*train, "--tracking.to", "jsonl,tensorboard,wandb,mlflow", "--handoff.serve_check", "true")
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["served"]
    report = start("-m", "rtrain", "report", "runs/leaky")
    assert report.returncode == 0, report.stderr
    assert not [text for text in (done.stdout, done.stderr, report.stdout, report.stderr) if "planted" in text]
    (tmp_path / "net").unlink()
    assert {"export", "report.html", "wandb", "run.json"} <= set(os.listdir(tmp_path / "runs" / "leaky"))
    assert found_in(tmp_path) == []

    before = sorted(tmp_path.rglob("*"))
    for option in ("--storage", "--tracking.project"):
        refused = start(*train, option, "https://me:planted-word@host/x?sig=planted-sig")
        assert refused.returncode == 2, refused.stdout
        assert "planted" not in refused.stdout + refused.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_the_grep_sees_what_it_looks_for(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n}").write_bytes(b"\x00planted" if n == 7 else b"")
    assert found_in(tmp_path) == [str(tmp_path / "7")]
