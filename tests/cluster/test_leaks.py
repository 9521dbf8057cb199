"""Nothing of a run stays behind but its own folder: no process and no file, however the run ends.

Of one that ends well, and of the verbs that look at it, `test_main_job` asks the same.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.conftest import RECIPE, SHORT, committed_step, last_json, wait_for
from tests.cluster.places import Place

PYTHON = (sys.executable, str(RECIPE))
KILLED_S = 120
"""Seconds in which Ray's processes notice that their driver was killed; its agents wait for Ray's own time-outs."""


def words(**changes: object) -> list[str]:
    given = SHORT | {"name": "leaks", "tracking.to": '["tensorboard", "jsonl"]'} | changes
    return ["train", "--json", *(w for key, value in given.items() for w in (f"--{key}", str(value)))]


@contextmanager
def under_way(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A run in the middle of its training."""
    process = place.start(*PYTHON, *words(**{"duration.steps": 5000}))
    with process:
        wait_for(
            lambda: committed_step(place.work / "runs" / "leaks") >= 10 or process.poll() is not None, "the first steps"
        )
        assert process.poll() is None, process.communicate(timeout=60)[1]
        assert len(place.processes()) >= 5, "driver, GCS, raylet and two workers: this test looks at the wrong ones"
        assert place.files()
        yield process


def test_a_run_that_fails_keeps_its_workers_logs(place: Place) -> None:
    process = place.start(
        *PYTHON, *words(**{"sparse_optim.lr": 1e30, "optim.lr": 1e20, "faults.max_failures": 0})
    )  # fmt: skip
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    place.expect_nothing()

    logs = place.work / "runs" / "leaks" / "worker-logs"
    assert f"What the workers wrote is in {logs}" in last_json(out)["error"]
    ranks = json.loads((logs.parent / "placement.json").read_text())["ranks"]
    text = "".join(path.read_text() for rank in ranks for path in logs.glob(f"worker-*-{rank['pid']}.err"))
    assert "the loss is" in text
    assert ":job_id:" not in text and all(path.stat().st_size for path in logs.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_whose_process_group_is_told_to_end(place: Place, number: signal.Signals) -> None:
    """As a terminal, `timeout` and SLURM do; one process alone is told in `test_stop`."""
    with under_way(place) as process:
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
        assert "Traceback" not in err and "C++" not in err
    place.expect_nothing()


NEXT = """
from rtrain.launch.embedded import embedded_ray
with embedded_ray(num_cpus=1):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [True, False])
def test_a_driver_that_is_killed(place: Place, at_once: bool) -> None:
    """Ray's agents end by themselves after 60 s, or when the next run starts; then the files go too."""
    with under_way(place) as process:
        process.kill()
        process.wait(60)

    def left() -> bool:
        return any(not at_once or "Agent" not in command for command in place.processes().values())

    wait_for(lambda: not left(), "the end of what the killed driver had started", timeout_s=KILLED_S)
    assert place.files(), "a killed process cannot tidy up: this test would show nothing"
    after = place.start(sys.executable, "-c", NEXT)
    _, err = after.communicate(timeout=120)
    assert after.returncode == 0, err
    place.expect_nothing()
