"""A tracker that is down: against a real MLflow server that comes late, is killed and comes back; nothing is lost."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

import rtrain
from rtrain import config
from rtrain.cli.console import _console
from rtrain.errors import ClusterError, RtrainWarning
from rtrain.storage import Folder
from rtrain.tracking import Tracking, open_trackers
from rtrain.tracking.courier import Courier
from rtrain.tracking.spool import Spool
from tests.unit.release.runs import run_of
from tests.unit.tracking.test_trackers import remote, scalars  # noqa: F401

CHECKED = ("train/loss", "valid/auc")


class Server:
    """`mlflow server` on localhost, over one database however often it is started."""

    def __init__(self, folder):
        self.database = f"sqlite:///{folder}/server.db"
        self.log = folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database,
                    "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 90
        while time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-2000:])

    def kill(self):
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None

    def run(self, project="shop"):
        """The only run, and of each curve all that is stored, duplicates too."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.database)
        (run,) = client.search_runs([client.get_experiment_by_name(project).experiment_id])
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        return run, {name: sorted((p.step, p.value) for p in points) for name, points in history.items()}


@pytest.fixture
def server(tmp_path):
    for needed in ("flask", "flask_cors", "uvicorn"):
        pytest.importorskip(needed, reason="mlflow-skinny has no server of its own")
    server = Server(tmp_path)
    yield server
    server.kill()


def opened(folder, uri, *, attempt=1, resume_step=0, to=("mlflow", "tensorboard", "jsonl")):
    return open_trackers(
        Tracking(to=to, mlflow_uri=uri, project="shop"), run_name="dlrm", folder=f"{folder}", config={"lr": 1.0},
        attempt=attempt, resume_step=resume_step,
    )  # fmt: skip


def log(trackers, *steps):
    for step in steps:
        for tracker in trackers:
            tracker.log(step, {"train/loss": 1 / step})
            tracker.log(step, {"valid/auc": 0.5 + step / 1000})


def waiting(folder):
    path = Path(folder, "spool", "mlflow.jsonl")
    return [json.loads(line).get("step") for line in path.read_text().splitlines()] if path.exists() else []


def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def same_everywhere(folder, server, steps):
    """What MLflow has is what TensorBoard and the lines have: names and steps, each once."""
    run, stored = server.run()
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    _, shown = scalars(Path(folder, "tensorboard"))
    for name in CHECKED:
        assert [step for step, _ in stored[name]] == list(steps)
        assert [(x["step"], x[name]) for x in lines if name in x] == stored[name]
        assert [step for step, _ in shown[name]] == list(steps)
    assert set(stored) == set(shown) == {*CHECKED, "best/auc"}
    assert stored["best/auc"] == [(list(steps)[-1], 0.75)]
    return run


def finish(trackers):
    for tracker in trackers:
        tracker.finish({"best/auc": 0.75})


@pytest.mark.slow
def test_a_server_that_comes_late_and_is_killed_in_the_middle(server, tmp_path):
    folder = tmp_path / "run"
    with pytest.warns(RtrainWarning, match="takes nothing.*The run goes on") as said:
        trackers = opened(folder, server.uri)
        log(trackers, 10, 20, 30)
    assert len(said) == 1  # and not at each point
    assert waiting(folder) == [10, 10, 20, 20, 30, 30]
    server.start()
    trackers[0].courier._again_s = (0.2, 0.2)
    until(lambda: waiting(folder) == [])
    assert [step for step, _ in server.run()[1]["train/loss"]] == [10, 20, 30]
    server.kill()
    log(trackers, 40, 50)
    until(lambda: trackers[0].courier.problem)
    with pytest.warns(RtrainWarning, match="takes nothing"):
        log(trackers, 60)
    assert waiting(folder) == [40, 40, 50, 50, 60, 60]
    server.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RtrainWarning)
        finish(trackers)
    run = same_everywhere(folder, server, range(10, 70, 10))
    assert run.info.status == "FINISHED" and run.data.params == {"lr": "1.0"}
    assert not (folder / "spool").exists()


KILLED = """
import os, signal, sys, time, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[3])
warnings.simplefilter("ignore")
from tests.unit.tracking.test_spool import log, opened
trackers = opened(sys.argv[1], sys.argv[2])
log(trackers, 10, 20)
assert trackers[0].courier.settle(60)
print("delivered", flush=True)
sys.stdin.readline()
log(trackers, 30)
for tracker in trackers:
    tracker.flush()  # as before a checkpoint
log(trackers, 40, 50)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_its_points_to_the_next_attempt(server, tmp_path):
    folder = tmp_path / "run"
    server.start()
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), server.uri, root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline() == "delivered\n"
            server.kill()
            process.communicate("go on\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert set(waiting(folder)) == {30, 40, 50}
    server.start()
    trackers = opened(folder, server.uri, attempt=2, resume_step=30)
    log(trackers, 40, 50, 60)
    finish(trackers)
    run = same_everywhere(folder, server, range(10, 70, 10))
    assert run.info.status == "FINISHED" and run.data.tags["attempt"] == "2"


def test_steps_that_were_delivered_and_are_taken_again_are_there_once(tmp_path):
    database = f"sqlite:///{tmp_path}/some.db"
    first = opened(tmp_path / "run", database)
    log(first, 10, 20, 30, 40)
    for tracker in first:
        tracker.close()
    second = opened(tmp_path / "run", database, attempt=2, resume_step=20)
    log(second, 30, 40, 50)
    finish(second)
    server = Server(tmp_path)
    server.database = database
    assert same_everywhere(tmp_path / "run", server, range(10, 60, 10)).info.status == "FINISHED"


def test_what_is_left_at_the_end_is_sent_by_the_verb(server, tmp_path, capsys):
    tracked = {"tracking.to": "mlflow", "tracking.mlflow_uri": server.uri, "tracking.project": "shop"}
    run = rtrain.override(run_of(tmp_path, "left"), tracked)
    Folder(run.folder).write_json("run.json", config.to_dict(run))
    trackers = opened(run.folder, server.uri, to=("mlflow",))
    log(trackers, 10, 20)
    with pytest.warns(RtrainWarning, match=r"has not taken 5 values.*'rtrain sync .*left' sends them") as said:
        finish(trackers)
    assert len(said) == 1
    assert _console(["sync", run.folder, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["sent"], found["left"]) == (0, 5) and found["why"]
    assert waiting(run.folder) == [10, 10, 20, 20, 20, None]
    server.start()
    assert _console(["sync", run.folder]) == 0
    assert capsys.readouterr().out == "MLflow has taken 5 values\n"
    stored, curves = server.run()
    assert stored.info.status == "FINISHED"
    assert curves == {
        "train/loss": [(10, 0.1), (20, 0.05)],
        "valid/auc": [(10, 0.51), (20, 0.52)],
        "best/auc": [(20, 0.75)],
    }
    assert _console(["sync", run.folder]) == 0
    assert capsys.readouterr().out == "nothing waits for MLflow\n"


def test_a_server_that_never_answers_holds_no_step_up(tmp_path):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)  # a connection is made, and nobody is there
        with pytest.warns(RtrainWarning, match="no answer yet"):
            trackers = opened(tmp_path, f"http://127.0.0.1:{mute.getsockname()[1]}", to=("mlflow",))
        began = time.monotonic()
        log(trackers, *range(1, 201))
        trackers[0].flush()
        assert time.monotonic() - began < 5  # a request is given 10 s, and another one
        trackers[0].courier.stop(0.0)
        trackers[0].spool.close()
    assert len(waiting(tmp_path)) == 400


def test_a_database_that_is_locked_for_a_while(tmp_path):
    database = tmp_path / "some.db"
    trackers = opened(tmp_path / "run", f"sqlite:///{database}", to=("mlflow",))
    log(trackers, 10)
    assert trackers[0].courier.settle(30)
    other = sqlite3.connect(database)
    try:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        log(trackers, 20, 30)
        assert time.monotonic() - began < 2
        assert waiting(tmp_path / "run") == [20, 20, 30, 30]
    finally:
        other.rollback()
        other.close()
    finish(trackers)
    server = Server(tmp_path)
    server.database = f"sqlite:///{database}"
    assert server.run()[1]["train/loss"] == [(10, 0.1), (20, 0.05), (30, 1 / 30)]


def test_a_run_that_goes_on_is_not_synced(tmp_path):
    spool = Spool(Folder(f"{tmp_path}"), "mlflow", keep=lambda _: True)
    spool.add({"step": 1})
    with pytest.raises(ClusterError, match="the run goes on, and sends it itself"):
        Spool(Folder(f"{tmp_path}"), "mlflow", keep=lambda _: True, alone=True)
    spool.close()
    assert Spool(Folder(f"{tmp_path}"), "mlflow", keep=lambda _: True, alone=True).read()[0] == [{"step": 1}]


def test_a_spool_is_cut_and_an_overtaken_attempt_leaves_the_new_ones_file(tmp_path):
    folder = Folder(f"{tmp_path}")
    old = Spool(folder, "mlflow", keep=lambda _: True)
    for step in (1, 2, 3):
        old.add({"step": step})
    with open(tmp_path / "spool" / "mlflow.jsonl", "a") as file:
        file.write('{"step": 1, "val')  # a crash
    new = Spool(folder, "mlflow", keep=lambda line: line["step"] < 3)
    old.add({"step": 4})
    old.done(old.read()[1])
    old.close()
    assert new.read()[0] == [{"step": 1}, {"step": 2}]
    new.add({"step": 5})
    _, until_there = new.read()
    new.done(until_there)
    assert new.is_empty and (tmp_path / "spool" / "mlflow.jsonl").read_bytes() == b""
    new.close()
    assert not (tmp_path / "spool").exists()


def test_a_full_disk_costs_no_line_once_there_is_room(tmp_path, monkeypatch):
    spool = Spool(Folder(f"{tmp_path}"), "mlflow", keep=lambda _: True)
    spool.add({"step": 1})
    real = spool._file

    class Full:
        closed = False

        def fileno(self):
            return real.fileno()

        def write(self, content):
            return real.write(content[:3])  # as write(2) does when the last block is full

    spool._file = Full()
    with pytest.warns(RtrainWarning, match="only 3 of"):
        spool.add({"step": 2})
    spool.add({"step": 3})
    spool._file = real
    assert not spool.is_empty
    spool.add({"step": 4})
    assert [line["step"] for line in spool.read()[0]] == [1, 2, 3, 4]


def test_a_remote_folder_has_what_was_flushed(remote):  # noqa: F811
    first = Spool(Folder(remote), "mlflow", keep=lambda _: True)
    first.add({"step": 1})
    first.sync()
    first.add({"step": 2})  # and the machine is lost
    second = Spool(Folder(remote), "mlflow", keep=lambda _: True)
    assert second.read()[0] == [{"step": 1}]
    second.done(second.read()[1])
    second.close()
    assert not fsspec.filesystem("memory").exists(f"{remote}/spool/mlflow.jsonl")


def test_what_is_not_safe_yet_is_kept(tmp_path):
    """A database that is copied to a remote folder now and then: what it took since the last copy comes again."""
    spool = Spool(Folder(f"{tmp_path}"), "mlflow", keep=lambda _: True)
    for step in (1, 2):
        spool.add({"step": step})
    taken = []
    courier = Courier(spool, lambda: None, taken.extend, forgets=False)
    try:
        assert courier.settle(30) and [line["step"] for line in taken] == [1, 2]
        assert spool.is_empty and waiting(tmp_path) == [1, 2]
        spool.forget()
        assert waiting(tmp_path) == []
        spool.add({"step": 3})
        assert courier.settle(30)
    finally:
        courier.stop(5)
    spool.close()
    assert waiting(tmp_path) == [3]
