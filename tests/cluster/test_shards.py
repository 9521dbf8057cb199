"""Tables that no replica has: answers are those of whole ones, and a shard that dies costs no wrong answer."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray import serve as ray_serve

import rtrain
from recipes.dlrm_movielens import debug
from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor
from rtrain.export.request import rows_of
from rtrain.handoff.served import SAME, apart
from rtrain.serving.app import application_of
from rtrain.serving.scale import Scale
from rtrain.serving.waiting import saying_what_it_waits_for
from tests.cluster.test_retriever import exported


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """An export, and rows of its test split."""
    storage = str(tmp_path_factory.mktemp("shards"))
    changes = {"storage": storage, "duration.steps": 5, "handoff.serve_check": "false", "tracking.to": ()}
    run = rtrain.override(debug(), changes)
    result = rtrain.train(run, launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    dataset = run.data.open()
    return result.export, rows_of(dataset.raw("test", 0, 200), dataset.schema)


def of_shards() -> list[psutil.Process]:
    """Of this Ray: others on the machine have theirs."""
    session = ray.get_runtime_context().worker.node.get_session_dir_path()
    found = [p for p in psutil.process_iter(["cmdline"]) if ":Tables" in " ".join(p.info["cmdline"] or [])]
    return [p for p in found if (raylet := p.parent()) and session in " ".join(raylet.cmdline())]


def test_answers_are_those_of_whole_tables(
    asked: tuple[str, list[dict[str, Any]]], serve_port: int, joined_ray: None
) -> None:
    export, rows = asked
    served = rtrain.serve(export, port=serve_port, replicas=Scale(shards=2))
    try:
        wanted = Predictor(export).predict(rows)
        assert apart(served.predict(rows), wanted) <= SAME
        alone = served.predict_concurrently([[row] for row in rows[:40]])
        assert apart([one for (one,) in alone], wanted[:40]) <= SAME
        assert served.predict([]) == []
        *_, dies = there = of_shards()
        assert len(there) == 2
        os.kill(dies.pid, signal.SIGSTOP)  # it is there, and says nothing
        try:
            late = httpx.post(f"{served.url}/predict", json={"rows": rows}, timeout=60)
        finally:
            os.kill(dies.pid, signal.SIGCONT)
        assert (late.status_code, late.headers.get("retry-after")) == (503, "1"), late.text[:200]
        assert late.json()["detail"] == "tables: one of 2 shards does not answer (TimeoutError). Ask again"
        assert apart(served.predict(rows), wanted) <= SAME
        os.kill(dies.pid, signal.SIGKILL)
        seen, until = list[int](), time.monotonic() + 120
        while time.monotonic() < until and seen[-20:] != [200] * 20:
            answer = httpx.post(f"{served.url}/predict", json={"rows": rows}, timeout=60)
            seen.append(answer.status_code)
            if answer.status_code == 200:
                assert apart(answer.json()["predictions"], wanted) <= SAME
            else:
                assert answer.headers["retry-after"] == "1" and "does not answer" in answer.json()["detail"], answer
                time.sleep(0.1)
        assert set(seen) <= {200, 503} and seen[-20:] == [200] * 20, seen
    finally:
        served.stop()


def test_of_two_copies_of_a_shard_one_may_freeze_or_die(
    asked: tuple[str, list[dict[str, Any]]], serve_port: int, joined_ray: None
) -> None:
    export, rows = asked
    wanted = Predictor(export).predict(rows[:20])
    served = rtrain.serve(export, port=serve_port, replicas=Scale(shards=2, copies=2))
    over, failed, differ, answered = threading.Event(), list[str](), list[float](), 0

    def ask() -> int:
        count = 0
        while not over.is_set():
            answer = httpx.post(f"{served.url}/predict", json={"rows": rows[:20]}, timeout=60)
            if answer.status_code == 200:
                differ.append(apart(answer.json()["predictions"], wanted))
            else:
                failed.append(f"{answer.status_code} {answer.text}")
            count += 1
        return count

    try:
        assert len(of_shards()) == 4
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask) for _ in range(4)]
            try:
                time.sleep(1)
                frozen = min(p.pid for p in of_shards())
                os.kill(frozen, signal.SIGSTOP)  # it is there, and says nothing
                time.sleep(5)
                os.kill(frozen, signal.SIGCONT)
                for _ in range(3):
                    before = {p.pid for p in of_shards()}
                    os.kill(min(before), signal.SIGKILL)
                    until = time.monotonic() + 120
                    while len({p.pid for p in of_shards()} - {min(before)}) < 4 and time.monotonic() < until:
                        time.sleep(0.1)
                    time.sleep(2)  # until Serve routes to the new one
            finally:
                over.set()
            answered = sum(client.result() for client in clients)
        assert answered > 40 and not failed, (answered, failed[:5])
        assert max(differ) <= SAME
    finally:
        over.set()
        served.stop()


def test_it_says_what_it_waits_for(asked: tuple[str, list[dict[str, Any]]], joined_ray: None) -> None:
    said, until = list[str](), time.monotonic() + 120
    served = application_of(asked[0], scale=Scale(shards=1, copies=20))
    target = ray_serve.RunTarget(served, name="crowded", route_prefix="/crowded")
    try:
        with saying_what_it_waits_for("crowded", said.append):
            ray_serve.run_many([target], wait_for_applications_running=False)
            while time.monotonic() < until and not any("Tables0-" in text for text in said):
                time.sleep(1)
    finally:
        ray_serve.delete("crowded")
    assert any("still starts" in text and "Tables0" in text and '"CPU": 0.5' in text for text in said), said
    assert len(said) == len(set(said))


def test_what_has_no_tables_to_share_is_refused(tmp_path: Path, joined_ray: None) -> None:
    with pytest.raises(ConfigError, match="Scale.shards: of a model that scores rows alone"):
        application_of(exported(tmp_path, rtrain.MF(dim=8)), scale=Scale(shards=2))
