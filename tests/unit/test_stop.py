"""SIGTERM to a recipe's process: one line and exit code 143, also once Ray has been there."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
import rtrain
from rtrain.cli.answer import guarded
from rtrain.launch.session import ray_session
from rtrain.run import Cluster

def work():
    if sys.argv[1] == "ray":
        with ray_session(Cluster(workers=1)):
            print("up", flush=True)
            time.sleep(600)
    print("up", flush=True)
    time.sleep(600)

sys.exit(guarded(work, as_json=True))
"""


@pytest.mark.parametrize("behind", [False, True], ids=["", "started with &, so that SIGINT is ignored"])
@pytest.mark.parametrize("where", ["alone", "ray"])
def test_told_to_stop(where: str, behind: bool, tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, where]
    if behind:
        words = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *words]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout and process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    assert out == '{"error": "told to stop (SIGTERM)", "exit_code": 143}\n'
    assert err == "told to stop (SIGTERM); the same command goes on from the last checkpoint\n"
