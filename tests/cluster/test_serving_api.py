"""The served application holds to its own OpenAPI, whatever schemathesis sends it."""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pandas as pd
import pytest
import ray
import schemathesis
from hypothesis import HealthCheck, given, settings
from ray import serve as ray_serve

import rtrain
from recipes.dlrm_movielens import debug
from rtrain.errors import ClusterError, DataError, RunFailed, UserError
from rtrain.serving import app
from rtrain.serving.answers import MAX_ROWS
from rtrain.serving.bodies import MAX_BYTES, PASSED_BYTES
from tests.cluster.conftest import ROOT, environment, free_port, wait_for
from tests.cluster.planted import Planted

DENSE = {feature.name: feature.std for feature in debug().data.schema.dense}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = str(tmp_path_factory.mktemp("served"))
    changes = {"storage": storage, "duration.steps": 5, "handoff.serve_check": "false", "tracking.to": ()}
    result = rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    return result.export


@pytest.fixture(scope="module")
def served(export: str, serve_port: int) -> Iterator[Any]:
    yield rtrain.serve(export, port=serve_port)
    if "rtrain" in app._OWN:
        app._OWN["rtrain"].stop()  # or what took its place


@pytest.fixture(scope="module")
def silent(served: Any) -> Iterator[list[socket.socket]]:
    """Clients that begin no request, and half of one; they wait while the other tests of this file run."""
    host, port = served.url.removeprefix("http://").split(":")
    with ExitStack() as clients:
        made = [clients.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(2)]
        made[1].sendall(b"POST /predict HTTP/1.1\r\nHost: ")
        yield made


def test_it_answers_as_its_openapi_says(served: Any, silent: list[socket.socket]) -> None:
    tried = set()
    for found in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
        operation = found.ok()

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            case.call_and_validate(timeout=60)

        answers()
        tried.add(operation.label)
    assert tried == {"POST /predict", "GET /schema", "GET /healthz"}


def test_limits_of_a_request(served: Any) -> None:
    rows = httpx.get(f"{served.url}/schema").json()
    assert rows["properties"]
    assert served.predict([]) == []
    with pytest.raises(DataError, match=f"rows: {MAX_ROWS + 1} in one request; at most {MAX_ROWS}"):
        served.predict([{}] * (MAX_ROWS + 1))
    long = httpx.post(f"{served.url}/predict", content=b" " * (MAX_BYTES + 1), timeout=60)
    assert (long.status_code, "at most" in long.json()["detail"]) == (413, True)
    (named,) = long.headers.get_list("x-request-id")
    csv = {"x-request-id": "mine", "content-type": "text/csv"}
    mine = httpx.post(f"{served.url}/predict", content=b"{}", headers=csv)
    assert (mine.status_code, mine.headers.get_list("x-request-id")) == (415, ["mine"]) and len(named) > 8
    broken = httpx.post(f"{served.url}/predict", content=b'{"rows": [}')
    assert broken.status_code == 400 and broken.json() == {
        "detail": "the body: it is no JSON: Expecting value, at letter 10"
    }
    long = b'{"rows": [{"hour": ' + b"7" * 5000 + b"}]}"
    for unread, why in (
        (b'{"rows": ["\xff"]}', "is not UTF-8"), (b"[" * 100_000, "nests too deep"), (long, "of more than 4300 digits")
    ):  # fmt: skip
        refused = httpx.post(f"{served.url}/predict", content=unread)
        assert refused.status_code == 400 and why in refused.json()["detail"]
    many = httpx.post(f"{served.url}/predict", json={"rows": [{}]}).json()["detail"]
    assert many.count("Field required") == 5 and many.endswith(" more")
    for body, said in (({"rows": [], "more": 1}, "more: Extra inputs"), ({"rows": 3}, "rows: Input should be")):
        refused = httpx.post(f"{served.url}/predict", json=body)
        assert refused.status_code == 422 and refused.json()["detail"].startswith(said), refused.text


def test_bodies_that_are_there_at_once_are_bounded_by_bytes(served: Any) -> None:
    """A thousand slow ones could else have 32 GB."""
    properties = httpx.get(f"{served.url}/schema").json()
    row = {n: example(p) for n, p in properties["properties"].items() if n in properties.get("required", ())}
    body = json.dumps({"rows": [row]}).encode() + b" " * (8 << 20)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    where = urlsplit(served.url)
    with ExitStack() as open_ones:
        clients = []
        for _ in range(40):
            client = open_ones.enter_context(socket.create_connection((where.hostname, where.port), timeout=60))
            client.sendall(head + body[:-1])
            clients.append(client)
        refused = list[socket.socket]()

        def all_said() -> bool:
            ready, _, _ = select.select([client for client in clients if client not in refused], [], [], 0)
            refused.extend(ready)
            return len(refused) >= 40 - PASSED_BYTES // len(body)

        wait_for(all_said, "refusals of what is too much")
        for client in refused:
            said = client.recv(4096)
            assert said.startswith(b"HTTP/1.1 429 ") and b"retry-after: 1" in said and b"x-request-id" in said, said
            assert b"bytes wait here. Ask again, or for less at once" in said
        for client in clients:
            if client not in refused:
                client.sendall(body[-1:])
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert served.predict(row)


def test_a_client_may_have_less_time_and_is_told_as_all_are(served: Any) -> None:
    late = httpx.post(
        f"{served.url}/predict", json={"rows": []}, headers={"x-request-timeout-seconds": "0.00001"}, timeout=60
    )
    assert (late.status_code, late.headers["retry-after"], late.headers["content-type"]) == (
        504, "1", "application/json"
    )  # fmt: skip
    assert late.json() == {"detail": "no answer in time. Ask for less at once, or again"}


def test_concurrent_requests_are_answered_each_with_its_own(served: Any, tmp_path: Path) -> None:
    """Many rows at once, more than one batch may have: each answer is as long as its request."""
    properties = httpx.get(f"{served.url}/schema").json()
    row = {n: example(p) for n, p in properties["properties"].items() if n in properties.get("required", ())}
    (alone,) = served.predict(row)
    sizes = [4000, 1, 4000, 9999, 2, 3000]
    answers = served.predict_concurrently([[row] * size for size in sizes])
    assert [len(answer) for answer in answers] == sizes
    # Another batch size sums in another order: float32 rounding of a logit, some 1e-7.
    assert all(abs(p - alone) < 1e-6 for answer in answers for p in answer)


def test_a_client_that_sends_no_headers_is_cut_off(silent: list[socket.socket]) -> None:
    assert [client.recv(100) for client in silent] == [b"", b""]


def example(of: dict[str, Any]) -> Any:
    """A value that a feature takes."""
    return {"integer": 0, "number": 0.5, "array": [], "string": ""}[of["type"]]


def test_the_openapi_is_of_the_export_that_is_served(served: Any) -> None:
    found = httpx.get(f"{served.url}/openapi.json").json()
    rows = found["components"]["schemas"]["Rows"]["properties"]["rows"]
    assert rows["items"] == httpx.get(f"{served.url}/schema").json()
    assert {"user_id", "item_id"} <= set(rows["items"]["required"]) and rows["maxItems"] == MAX_ROWS


def test_values_that_the_model_makes_no_number_of_are_refused_by_name(served: Any) -> None:
    properties = httpx.get(f"{served.url}/schema").json()["properties"]
    bounds = {name: properties[name].get("anyOf", [properties[name]])[0] for name in DENSE}
    row = {"user_id": 1, "item_id": 2, "hour": 3} | dict.fromkeys(DENSE, 1.0)
    draw = random.Random(0)
    within = [row | {n: p[draw.choice(("minimum", "maximum"))] for n, p in bounds.items()} for _ in range(256)]
    assert all(0 <= answer <= 1 for answer in served.predict(within))
    for name, of in bounds.items():
        assert of["maximum"] < 3e38 * DENSE[name]
        with pytest.raises(DataError, match=rf"rows\.1\.{name}: .* beyond which the model gives none"):
            served.predict([row, row | {name: 3e38 * DENSE[name]}])


def test_what_no_request_can_say(served: Any) -> None:
    row = {"user_id": 1, "item_id": 2, "hour": 3}
    name = next(iter(DENSE))
    with pytest.raises(DataError, match=rf"predict: rows\[0\].{name}: JSON has no nan. Send None"):
        served.predict(row | {name: float("nan")})
    with pytest.raises(DataError, match=r"rows\[0\].hour: JSON cannot say a set, as \{3\}"):
        served.predict(row | {"hour": {3}})
    with pytest.raises(UserError, match="answers /predict alone, not /recommend"):
        served.recommend([1])


def test_rows_of_pandas_and_numpy(served: Any) -> None:
    rows = [{"user_id": n, "item_id": n + 1, "hour": 3} | dict.fromkeys(DENSE, n / 4) for n in range(3)]
    wanted = served.predict(rows)
    assert served.predict(pd.DataFrame(rows)) == wanted
    assert served.predict([{name: np.asarray(value)[()] for name, value in row.items()} for row in rows]) == wanted


def test_what_another_process_serves_stays(served: Any, export: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_OWN", {})  # as in another process
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(ClusterError, match=r"another process serves 'rtrain' on this cluster already \(RUNNING\)"):
        rtrain.serve(export, port=port)
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    monkeypatch.undo()
    newer = rtrain.serve(export, port=port)  # its own it may replace
    with pytest.raises(UserError, match=r"is served no more, .*/export took its place. Serve it again"):
        served.predict({})
    served.stop()
    assert httpx.get(f"{newer.url}/healthz").status_code == 200


def test_the_check_of_a_run_leaves_what_is_served(served: Any, export: str, tmp_path: Path) -> None:
    """Also where the run is called as the application is."""
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(ClusterError, match=r"serve: 'rtrain' answers at / of this cluster already. Stop it, or serve"):
        app.deploy(export, name="another", port=port)
    changes = {"name": "rtrain", "storage": str(tmp_path), "duration.steps": 5, "handoff.port": port, "tracking.to": ()}
    rtrain.train(rtrain.override(debug(), changes | {"handoff.serve_check": "true"}), quiet=True)
    result = json.loads((tmp_path / "rtrain" / "result.json").read_text())
    assert result["served"] is True and result["served_max_difference"] <= 1e-5
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    assert httpx.get(f"{served.url}/check-rtrain/healthz").status_code == 404  # it has gone


def test_a_second_ray_of_one_process_has_a_serve_of_its_own(ray_temp_dir: str) -> None:
    """As two runs of one notebook that each check what they serve."""
    code = (
        "from ray import serve\n"
        "from rtrain.launch.session import ray_session\n"
        "from rtrain.run import Cluster\n"
        "from rtrain.serving.ports import check_port\n"
        f"for port in {free_port(), free_port()}:\n"
        "    with ray_session(Cluster(workers=1)):\n"
        "        check_port('127.0.0.1', port)\n"
        "        serve.start(http_options={'host': '127.0.0.1', 'port': port})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(ray_temp_dir), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr


def test_a_port_that_nothing_is_served_on_any_more_is_no_dead_end(export: str, ray_temp_dir: str) -> None:
    """As after the check of a run, or a serve that ended; who started Serve without rtrain keeps theirs."""
    first, second, theirs = free_port(), free_port(), free_port()
    code = (
        "import rtrain\n"
        "from ray import serve\n"
        "from rtrain.errors import ClusterError\n"
        "from rtrain.launch.session import ray_session\n"
        "from rtrain.run import Cluster\n"
        "from rtrain.serving.ports import check_port\n"
        "with ray_session(Cluster(workers=1)):\n"
        f"    for port in {first, second}:\n"
        f"        served = rtrain.serve({export!r}, port=port)\n"
        "        assert served.url.endswith(str(port)) and served.predict([]) == []\n"
        "        served.stop()\n"
        f"    check_port('127.0.0.1', {first})\n"
        "    assert serve.status().proxies, 'who asks changes nothing'\n"
        "    serve.shutdown()\n"
        f"    serve.start(http_options={{'host': '127.0.0.1', 'port': {theirs}}})\n"
        "    try:\n"
        f"        rtrain.serve({export!r}, port={first})\n"
        "    except ClusterError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(ray_temp_dir), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert f"listens on {theirs} already" in done.stdout and "nothing now: ray.serve.shutdown() ends it" in done.stdout


@pytest.mark.slow
def test_a_replica_whose_gpu_computes_no_more_starts_anew(served: Any, tmp_path: Path) -> None:
    """By an error that torch raises of a GPU, raised here by the model."""
    model = Planted(dim=8, bottom=(8,), top=(8,), loses_gpu=16)  # a replica computes some blank rows first
    changes = {"storage": str(tmp_path), "duration.steps": 5, "handoff.serve_check": "false", "tracking.to": ()}
    result = rtrain.train(rtrain.override(replace(debug(), model=model), changes), launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    ray_serve.run(app.application_of(result.export), name="loses", route_prefix="/loses")
    properties = httpx.get(f"{served.url}/schema").json()
    row = {n: example(p) for n, p in properties["properties"].items() if n in properties.get("required", ())}
    seen: list[int] = []

    def asked() -> int:
        seen.append(httpx.post(f"{served.url}/loses/predict", json={"rows": [row]}, timeout=60).status_code)
        return seen[-1]

    try:
        wait_for(lambda: asked() == 500, "it computes no more")
        wait_for(lambda: asked() == 200, "it was started anew")
    finally:
        ray_serve.delete("loses")
    assert seen[0] == 200, "without what was planted it answers"


@pytest.mark.slow
def test_what_does_not_start_takes_no_place_and_what_does_fails_no_request(
    served: Any, export: str, serve_port: int, tmp_path: Path
) -> None:
    model = Planted(dim=8, bottom=(8,), top=(8,), crashes=True)
    changes = {"storage": str(tmp_path), "duration.steps": 5, "handoff.serve_check": "false", "tracking.to": ()}
    bad = rtrain.train(rtrain.override(replace(debug(), model=model), changes), launcher="inline", quiet=True)
    assert bad is not None and bad.export is not None
    properties = httpx.get(f"{served.url}/schema").json()
    row = {n: example(p) for n, p in properties["properties"].items() if n in properties.get("required", ())}
    over, seen = threading.Event(), list[int]()

    def ask() -> None:
        while not over.is_set():
            seen.append(httpx.post(f"{served.url}/predict", json={"rows": [row]}, timeout=60).status_code)

    ours = app._OWN["rtrain"]
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        try:
            with pytest.raises(RunFailed, match="it does not load where it is served.*What was served .* goes on"):
                rtrain.serve(bad.export, port=serve_port)
            assert app._OWN["rtrain"] is ours and not ours.replaced() and ours.predict(row)
            between = len(seen)
            again = rtrain.serve(export, port=serve_port)
            assert again.predict(row)
        finally:
            over.set()
        for client in clients:
            client.result()
    assert between > 20 and len(seen) > between + 20 and set(seen) == {200}, seen
    with pytest.raises(UserError, match="is served no more, .* took its place"):
        ours.predict(row)
    with pytest.raises(RunFailed, match="had to end for it, so nothing is served there now"):
        rtrain.serve(bad.export, port=serve_port, replicas=rtrain.Scale(shards=1))
    with pytest.raises(UserError, match="is served no more, it was stopped"):
        again.predict(row)
    assert "rtrain" not in ray_serve.status().applications
    assert rtrain.serve(export, port=serve_port).predict(row)


def test_the_command_takes_the_place_of_what_another_process_serves(served: Any, export: str) -> None:
    """Last here: nothing is served after it."""
    port = served.url.rpartition(":")[2]
    env = dict(os.environ) | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "rtrain", "serve", export, "--port", port]
    refused = subprocess.run(words, env=env, capture_output=True, text=True, timeout=180)
    assert refused.returncode == 2 and "Take its place: --replace" in refused.stderr, refused
    ours = app._OWN["rtrain"]  # that of this process, by which test ever
    with ExitStack() as commands:

        def replacing() -> subprocess.Popen[str]:
            command = subprocess.Popen([*words, "--replace"], env=env, stdout=PIPE, stderr=PIPE, text=True)
            commands.callback(command.kill)
            assert command.stdout and command.stdout.readline().startswith(f"http://127.0.0.1:{port}/predict answers")
            return command

        first = replacing()
        with pytest.raises(UserError, match="another process took the place of"):
            ours.predict({})
        second = replacing()
        said = first.communicate(timeout=120)[1]
        assert first.returncode == 0 and "another command serves in its place now, and this one ends" in said, said
        ours.stop()
        assert httpx.get(f"{served.url}/healthz", timeout=60).status_code == 200, "both left that one alone"
        second.send_signal(signal.SIGINT)
        assert second.wait(timeout=120) == 0, "how it is meant to end"
    assert "rtrain" not in ray_serve.status().applications


@pytest.mark.slow
def test_what_a_script_on_a_cluster_serves_goes_on_until_it_is_stopped(export: str, serve_port: int) -> None:
    """And the script ends without a word."""
    env = dict(os.environ) | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    code = f"import rtrain; rtrain.serve({export!r}, port={serve_port})"
    script = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=180)
    assert script.returncode == 0 and "Exception" not in script.stderr, script.stderr
    assert httpx.get(f"http://127.0.0.1:{serve_port}/healthz", timeout=60).status_code == 200
    words = [sys.executable, "-m", "rtrain", "serve", "--stop", "--json"]
    for code, told in ((0, {"stopped": "rtrain"}), (2, None)):
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=180)
        assert done.returncode == code, done.stderr
        assert told is None or json.loads(done.stdout) == told
    assert "nothing to stop is served" in done.stderr and "rtrain" not in ray_serve.status().applications
