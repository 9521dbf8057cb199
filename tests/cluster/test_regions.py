"""Two Rays on this machine, as two regions: a release goes through both, a bad one stops at the first."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from rtrain.launch.head import BEFORE_S, RECONNECT
from tests.cluster.conftest import ROOT, free_port, wait_for
from tests.unit.release.runs import PASSES, run_of, write_rows
from tests.unit.training.jobs import train

BIN = Path(sys.executable).parent
Regions = dict[str, tuple[str, int]]
"""Name -> address of its Ray, and port of its Ray Serve."""
ENV = {
    **os.environ, "RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0", "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # fmt: skip


def head(stack: ExitStack, folder: Path) -> str:
    """A Ray of its own; its address."""
    port, temp = free_port(), tempfile.mkdtemp(prefix="rg-", dir="/tmp")
    stack.callback(shutil.rmtree, temp, ignore_errors=True)
    start = [
        BIN / "ray", "start", "--head", f"--port={port}", "--num-cpus=4", f"--temp-dir={temp}", "--block",
        "--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
    ]  # fmt: skip
    log = stack.enter_context((folder / f"{port}.log").open("w"))
    process = subprocess.Popen(list(map(str, start)), env=ENV, stdout=log, stderr=log, cwd=ROOT)

    def end() -> None:
        for started in [*psutil.Process(process.pid).children(recursive=True), process]:
            started.kill()
        process.wait(30)

    stack.callback(end)
    check = [str(BIN / "ray"), "health-check", f"--address=127.0.0.1:{port}"]
    wait_for(
        lambda: subprocess.run(check, env=ENV, capture_output=True, timeout=60).returncode == 0, "a Ray of its own"
    )
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    write_rows(folder)
    for name, lr in (("good", 2e-2), ("again", 3e-2), ("wrong", 1e-9)):
        train(run_of(folder, name, lr=lr))
        assert PASSES.judge(f"{folder}/runs/{name}", None if name == "good" else f"{folder}/runs/good").passed
    return folder / "runs"


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    folder = tmp_path_factory.mktemp("heads")
    with ExitStack() as stack:
        yield {name: (head(stack, folder), free_port()) for name in ("eu", "us")}


class Asking:
    """A client of each region, without a pause, until it is over."""

    def __init__(self, regions: Regions):
        self.seen: dict[str, Counter[str]] = {name: Counter() for name in regions}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(name, port), daemon=True) for name, (_, port) in regions.items()
        ]

    def _ask(self, name: str, port: int) -> None:
        draw = np.random.default_rng(port)
        with httpx.Client(timeout=60) as http:
            while not self._over.is_set():
                row = {"user": int(draw.integers(40)), "item": int(draw.integers(30)), "price": float(draw.normal())}
                answer = http.post(f"http://127.0.0.1:{port}/demo/predict", json={"rows": [row]})
                self.seen[name][f"{answer.status_code} {answer.headers.get('x-rtrain-version')}"] += 1

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def release(folder: Path, runs: Path, run: str, regions: Regions, *more: str) -> tuple[int, dict[str, object]]:
    return told(command(folder, runs, run, regions, *more))


def command(folder: Path, runs: Path, run: str, regions: Regions, *more: str) -> list[str]:
    asked = ",".join(f"{name}={address}@{port}" for name, (address, port) in regions.items())
    return [
        sys.executable, "-m", "rtrain", "release", f"{runs}/{run}", "--as", "demo", "--reason", "a test",
        "--regions", asked,
        "--registry", f"sqlite:///{folder}/registry.db", "--audit", f"{folder}/audit", "--state", f"{folder}/endpoints",
        "--seconds", "1", "--routers", "1", "--json", *more,
    ]  # fmt: skip


def told(command: list[str]) -> tuple[int, dict[str, object]]:
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def of_all(folder: Path, regions: Regions, *words: str) -> tuple[int, dict[str, object]]:
    """Another command over the same regions."""
    asked = ",".join(f"{name}={address}@{port}" for name, (address, port) in regions.items())
    where = ["--registry", f"sqlite:///{folder}/registry.db", "--audit", f"{folder}/audit"]
    more = where if words[0] == "rollback" else []
    return told([sys.executable, "-m", "rtrain", *words, "--regions", asked, "--json", *more])


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten commands, each of which starts, and joins two Rays
def test_one_region_after_the_other_until_one_takes_it_back(runs: Path, regions: Regions, tmp_path: Path) -> None:
    assert release(tmp_path, runs, "good", regions) == (
        0,
        {"done": ["eu", "us"], "stopped_at": "", "why": "", "left": [], "away": []},
    )
    with Asking(regions) as asking:
        code, told = release(tmp_path, runs, "again", regions, "--steps", "50,100", "--answers", "20")
        assert (code, told["done"]) == (0, ["eu", "us"]), told
        for name in regions:
            asking.seen[name].clear()
        wait_for(lambda: all(seen["200 2"] > 20 for seen in asking.seen.values()), "both regions have it")
        assert PASSES.judge(f"{runs}/wrong", f"{runs}/again").passed
        code, told = release(tmp_path, runs, "wrong", regions, "--steps", "20,100", "--answers", "10000")
        assert (code, told["done"], told["stopped_at"], told["left"]) == (1, [], "eu", ["us"]), told
        assert "its scores drifted" in str(told["why"])
        code, status = of_all(tmp_path, regions, "endpoints", "demo")
        served = [(of["region"], of["versions"][0]["version"]) for of in status["endpoints"]]  # type: ignore[attr-defined]
        assert (code, served) == (0, [("eu", 2), ("us", 2)]), status
        code, back = of_all(tmp_path, regions, "rollback", "demo", "--endpoint", "--reason", "the first was better")
        assert (code, back["done"]) == (0, ["eu", "us"]), back
        for name in regions:
            asking.seen[name].clear()
        wait_for(lambda: all(seen["200 1"] > 20 for seen in asking.seen.values()), "both went back")
        assert not any(seen["200 2"] > 20 for seen in asking.seen.values()), asking.seen
        # One that the first region alone has: the other stays with what it has.
        missing = {"ap": (f"127.0.0.1:{free_port()}", free_port()), "us": regions["us"]}
        code, status = of_all(tmp_path, missing, "endpoints", "demo")
        assert (code, [of["region"] for of in status["endpoints"]]) == (1, ["us"]), status  # type: ignore[attr-defined]
        assert "region 'ap': its Ray at 127.0.0.1:" in status["failed"]["ap"], "the others are shown"  # type: ignore[index]
        code, told = release(tmp_path, runs, "again", {"eu": regions["eu"]}, "--steps", "100", "--answers", "5")
        assert (code, told["done"]) == (0, ["eu"]), told
        past = {"ap": missing["ap"], **regions}
        code, back = of_all(tmp_path, past, "rollback", "demo", "--endpoint", "--reason", "not after all")
        assert (code, back["done"], back["away"]) == (1, ["eu", "us"], ["ap"]), back
        code, status = of_all(tmp_path, regions, "endpoints", "demo")
        assert [of["versions"][0]["version"] for of in status["endpoints"]] == [1, 1], status  # type: ignore[attr-defined]
    code, gone = of_all(tmp_path, past, "endpoints", "demo", "--stop", "--reason", "it is over")
    assert (code, gone["regions"], list(gone["failed"])) == (1, ["eu", "us"], ["ap"]), gone  # type: ignore[call-overload]
    assert of_all(tmp_path, regions, "endpoints") == (0, {"endpoints": [], "failed": {}})
    assert not set(asking.seen["us"]) & {"200 3"}, "the second region never had it"
    assert {status.split()[0] for seen in asking.seen.values() for status in seen} == {"200"}, asking.seen


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_head_that_dies_meanwhile_ends_it_by_what_is_known(runs: Path, regions: Regions, tmp_path: Path) -> None:
    """Ray's client would end the command from C++, which says nothing of where the version is."""
    with ExitStack() as stack:
        both = {"eu": regions["eu"], "late": (head(stack, tmp_path), free_port())}
        assert release(tmp_path, runs, "good", both)[1]["done"] == ["eu", "late"]
        with Asking({"eu": regions["eu"]}), (tmp_path / "said").open("w") as said:
            started = subprocess.Popen(
                command(tmp_path, runs, "again", both, "--steps", "50,100", "--answers", "20"),
                env={**ENV, RECONNECT: f"{BEFORE_S + 6:.0f}"}, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
            )  # fmt: skip
            stack.callback(started.kill)
            wait_for(lambda: "late: " in (tmp_path / "said").read_text(), "the second region tries it")
            port = both["late"][0].rpartition(":")[2]
            (gcs,) = (p for p in psutil.process_iter() if {f"--gcs_server_port={port}"} & set(p.cmdline()))
            gcs.kill()
            answer = json.loads(started.communicate(timeout=120)[0].splitlines()[-1])
        assert started.returncode == 1, (tmp_path / "said").read_text()
        assert (answer["done"], answer["stopped_at"], answer["left"]) == (["eu"], "late", []), answer
        assert re.match(rf"Ray's head at \S+:{port} has not answered for", answer["why"])
        waited = rf"Ray's head at \S+:{port} does not answer; it is waited for, 6 s in all"
        assert re.search(waited, (tmp_path / "said").read_text())
    code, _ = of_all(tmp_path, {"eu": regions["eu"]}, "endpoints", "demo", "--stop", "--reason", "it is over")
    assert code == 0
