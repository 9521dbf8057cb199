"""Nothing of a run stays behind but its own folder: no process and no file, however the run ends."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cluster.conftest import RECIPE, SHORT, committed_step, environment, last_json, wait_for

PYTHON = (sys.executable, str(RECIPE))
# Of torch, one for a user and used again: an empty folder for compiled code, made when it is imported.
NOT_OURS = ("torchinductor_",)
KILLED_S = 120
"""Seconds in which Ray's processes notice that their driver was killed; its agents wait for Ray's own time-outs."""


class Place:
    """Where one test's commands run, and what there is of them."""

    def __init__(self, folder: Path, ray: Path):
        self.folder, self.ray, self.mark = folder, ray, uuid.uuid4().hex
        self.work, self.temporary = folder / "work", folder / "tmp"
        for path in (self.work, self.temporary):
            path.mkdir()
        self.tmp_before = names_in_tmp()

    def start(self, *command: str) -> subprocess.Popen[str]:
        env = environment(str(self.ray)) | {"TMPDIR": str(self.temporary), "RTRAIN_TEST_MARK": self.mark}
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> dict[int, str]:
        """Those that inherited the mark; who has written a title over it (Ray's workers) has our files open."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # it has just ended, or is a kernel's
                if entry.name.isdigit() and self._is_ours(entry):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        return found

    def _is_ours(self, process: Path) -> bool:
        if "\nState:\tZ" in (process / "status").read_text():
            return False
        if (
            self.mark.encode() in (process / "environ").read_bytes()
            or str(self.ray).encode() in (process / "cmdline").read_bytes()
        ):
            return True
        ours = (f"{self.ray}/", f"{self.temporary}/")
        return any(os.readlink(link).startswith(ours) for link in (process / "fd").iterdir())

    def files(self) -> list[str]:
        """In the temporary folders and beside the runs."""
        kept = self.ray.iterdir() if self.ray.exists() else ()
        here = [*kept, *self.temporary.iterdir(), *(p for p in self.work.iterdir() if p.name != "runs")]
        strange = [p for p in here if not p.name.startswith(NOT_OURS)]
        return sorted(map(str, strange)) + sorted(names_in_tmp() - self.tmp_before)

    def expect_nothing(self, *, within_s: float = 10) -> None:
        """A process that has been told to end may take a moment to be gone."""
        with suppress(AssertionError):
            wait_for(lambda: not self.processes(), "the end of all processes", timeout_s=within_s)
        assert (self.processes(), self.files()) == ({}, [])


def names_in_tmp() -> set[str]:
    """What of ours or of Ray's is in /tmp itself, where no command of these tests is told to write.

    Not what a living process has locked: other tests run beside these.
    """
    names = (p for p in Path("/tmp").iterdir() if p.name.startswith(("rtrain-scratch-", "ray", "torchelastic")))
    return {p.name for p in names if not is_locked(p)}


def is_locked(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True  # gone meanwhile
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@pytest.fixture
def place(tmp_path: Path, ray_temp_dir: str) -> Iterator[Place]:
    made = Place(tmp_path, Path(ray_temp_dir) / uuid.uuid4().hex[:6])
    yield made
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)


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


def test_a_run_that_ends_well_and_the_verbs_that_look_at_it(place: Place) -> None:
    process = place.start(*PYTHON, *words(**{"duration.steps": 20}))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert last_json(out)["steps"] == 20
    place.expect_nothing()

    run = str(place.work / "runs" / "leaks")
    rtrain = (sys.executable, "-m", "rtrain")
    verbs = [
        (*PYTHON, "plan"), (*PYTHON, "config"), (*rtrain, "ledger", run, "--verify"), (*rtrain, "report", run),
        (*rtrain, "checkpoints", run, "verify"), (*rtrain, "checkpoints", run, "export", "--to", f"{run}/model"),
    ]  # fmt: skip
    for pair in zip(verbs[::2], verbs[1::2], strict=True):
        for command, verb in [(command, place.start(*command)) for command in pair]:
            _, err = verb.communicate(timeout=120)
            assert verb.returncode == 0, (command, err)
    place.expect_nothing()


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
