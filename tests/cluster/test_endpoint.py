"""Versions behind one address, under load: releases that go through, bad ones taken back, and what users see."""

import _thread
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import ray
from ray import serve as ray_serve

from rtrain.endpoint.actor import conductor_of, endpoints
from rtrain.endpoint.canary import Canary, Limits
from rtrain.endpoint.endpoint import Endpoint, Settled
from rtrain.endpoint.online import Online
from rtrain.endpoint.routing import place
from rtrain.errors import CheckpointError, ClusterError, RunFailed, UserError
from rtrain.release.registry import Registry
from rtrain.serving.scale import Scale
from rtrain.serving.waiting import DIED, what_failed
from rtrain.serving.wire import Answer, Question
from rtrain.stages.config import TwoStages
from tests.cluster.conftest import free_port, wait_for
from tests.cluster.load import KEYS, Seen, load
from tests.cluster.planted import Planted
from tests.unit.endpoint.test_online import log
from tests.unit.release.runs import ITEMS, PASSES, USERS, run_of, write_rows
from tests.unit.training.jobs import train

QUICK = Canary(steps=(0.1, 0.5, 1.0), seconds=1.0, answers=40, patience_s=60, timeout_s=5)
PLANTED = {
    "slow": Planted(dim=8, bottom=(8,), top=(16,), sleeps_s=0.2),
    "leaks": Planted(dim=8, bottom=(8,), top=(16,), leaks_mb=8),
    "crashes": Planted(dim=8, bottom=(8,), top=(16,), crashes=True),
    "errs": Planted(dim=8, bottom=(8,), top=(16,), errs=True),
    "turned": Planted(dim=8, bottom=(8,), top=(16,), turns_round=True),
    "nan": Planted(dim=8, bottom=(8,), top=(16,), says_nan=True),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Finished runs, whose gates were passed: two good ones, one that learned nothing, and what is asked of `PLANTED`.

    All tests but those of a bad version ask for the one that crashes at most.
    """
    folder = tmp_path_factory.mktemp("endpoint")
    items = [getattr(item, "callspec", None) for item in request.session.items if item.path == Path(__file__)]
    asked = {"crashes"} | {of.params["name"] for of in items if of and "name" in of.params}
    write_rows(folder)
    for name, lr in (("good", 2e-2), ("again", 3e-2), ("wrong", 1e-9)):
        train(run_of(folder, name, lr=lr))
    for name, model in PLANTED.items():
        if name not in asked:
            continue
        train(replace(run_of(folder, name), model=model))
    for run in (folder / "runs").iterdir():
        champion = None if run.name == "good" else f"{folder}/runs/good"
        assert PASSES.judge(str(run), champion).passed
    return folder / "runs"


@pytest.fixture(scope="module")
def endpoint(serve_port: int, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("registry")
    found = Endpoint(
        name="demo", port=serve_port, registry=f"sqlite:///{folder}/registry.db", audit=f"{folder}/audit",
        state=f"{folder}/endpoints", grpc_port=free_port(),
    )  # fmt: skip
    assert found.release(f"{runs}/good", "the first").version == 1
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def nothing_is_tried(endpoint: Endpoint) -> Iterator[None]:
    """What one test leaves half done is not the next one's."""
    yield
    if endpoint.status()["canary"]:
        endpoint.rollback("the test is over")


def predicting(url: str) -> AbstractContextManager[Seen]:
    """A load of rows that are drawn."""

    def ask(http: httpx.Client, draw: np.random.Generator, headers: dict[str, str]) -> httpx.Response:
        row = {"user": int(draw.integers(USERS)), "item": int(draw.integers(ITEMS)), "price": float(draw.normal())}
        return http.post(f"{url}/predict", json={"rows": [row]}, headers=headers)

    return load(ask)


def released(endpoint: Endpoint, run: str, canary: Canary = QUICK) -> tuple[Settled, Seen]:
    """A release under load, to its end."""
    with predicting(endpoint.url) as seen:
        version = endpoint.release(run, "a test", canary)
        settled = endpoint.settled(version.version, timeout_s=120)
    assert settled is not None
    wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
    wait_for(lambda: not endpoint.status()["to_do"], "log and registry were told of it")
    return settled, seen


def touched(seen: Seen, version: int, share: float) -> None:
    """Nobody had the version but the share of users that its first step has."""
    whom = {key for key in KEYS if place(f"demo-{version}:{key}") < share}
    assert seen.versions.get(f"{version}", set()) <= whom and set(seen.versions) <= {"1", f"{version}"}


def test_releases_weights_and_rollbacks_under_load_fail_no_request(endpoint: Endpoint, runs: Path) -> None:
    registry = Registry(endpoint.registry, endpoint.audit)
    settled, seen = released(endpoint, f"{runs}/again", replace(QUICK, shadow=0.5))
    assert settled.champion and settled.version == 2 and not seen.failed and sum(seen.statuses.values()) > 100
    assert {"1", "2"} <= set(seen.versions)
    decisions = [(d["what"], d["version"], d["share"]) for d in reversed(endpoint.status()["decisions"])]
    steps = [("begin", 2, 0.0), ("advance", 2, 0.1), ("advance", 2, 0.5), ("advance", 2, 1.0)]
    assert [d for d in decisions if d[1] == 2][:4] == steps, decisions
    with predicting(endpoint.url) as seen:
        assert endpoint.rollback("slower than it seemed") == "version 1 (good) answers again"
        wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
        time.sleep(1)  # answers that were under way
        seen.versions.clear()
        version = endpoint.release(f"{runs}/again", "once more", replace(QUICK, steps=(0.1,))).version
        endpoint.hold(0.6, "an A/B test")
        asked = {key for key in KEYS if place(f"demo-2:{key}") < 0.6}
        wait_for(lambda: len(seen.versions.get("2", ())) > 0.8 * len(asked), "most of its share asked version 2")
        wait_for(lambda: not endpoint.status()["to_do"], "the log was told of it")
        assert seen.versions["2"] <= asked
        newest = max(Path(registry.log.folder.path).glob("0*.json"))
        kept = newest.read_text()
        assert json.loads(kept)["what"] == "hold", "an endpoint's decision, which changes nothing at MLflow"
        newest.unlink()
        assert any("entries were cut off" in problem for problem in registry.verify())
        newest.write_text(kept)
        assert registry.verify() == []
        assert endpoint.settled(version, timeout_s=1) is None, "a person decides"
        with pytest.raises(UserError, match="version 2 is being tried"):
            endpoint.release(f"{runs}/wrong", "too many")
        assert endpoint.rollback("enough seen") == "the version that was being tried is taken back"
        wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
        time.sleep(1)  # answers that were under way
        seen.versions.clear()
        wait_for(lambda: len(seen.versions.get("1", ())) > 50, "version 1 answers")
        assert set(seen.versions) == {"1"}
    assert not seen.failed, seen.statuses
    holder = registry.holder("demo", "champion")
    assert holder and holder.version == 1 and registry.verify() == []
    told = [entry.what for entry in registry.log.entries()]
    assert {"begin", "advance", "champion", "hold", "take back", "roll back"} <= set(told)


@pytest.mark.parametrize(
    ("name", "said", "limits"),
    [
        ("wrong", "its scores drifted", Limits()),
        pytest.param("errs", "answers failed", Limits(), marks=pytest.mark.slow),
        pytest.param("nan", "answers failed", Limits(), marks=pytest.mark.slow),
        pytest.param("turned", "it orders otherwise", Limits(drift=None), marks=pytest.mark.slow),
        pytest.param("slow", "a tenth of its answers took", Limits(), marks=pytest.mark.slow),
        pytest.param("leaks", "memory grew by", Limits(grown_mb=150, slower=None), marks=pytest.mark.slow),
    ],
)
def test_a_bad_version_is_taken_back_by_itself(
    endpoint: Endpoint, runs: Path, name: str, said: str, limits: Limits
) -> None:
    canary = replace(QUICK, steps=(0.2, 1.0), answers=10_000, limits=limits)
    settled, seen = released(endpoint, f"{runs}/{name}", canary)
    assert not settled.champion and settled.why.startswith("take back: ") and said in settled.why, settled
    assert not seen.failed, seen.statuses
    touched(seen, settled.version, 0.2)
    newest = endpoint.status()["decisions"][0]
    assert (newest["what"], newest["share"], newest["by"]) == ("take back", 0.2, "endpoint")
    registry = Registry(endpoint.registry, endpoint.audit)
    holder = registry.holder("demo", "champion")
    assert holder is not None and holder.version == 1
    assert any(entry.what == "take back" and said in entry.reason for entry in registry.log.entries())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turned"])  # what `runs` trains it for
def test_what_orders_the_other_way_round_is_seen_before_anybody_has_it(
    endpoint: Endpoint, runs: Path, name: str
) -> None:
    canary = replace(QUICK, steps=(0.2, 1.0), shadow=0.1, answers=10_000, limits=Limits(drift=None))
    settled, seen = released(endpoint, f"{runs}/{name}", canary)
    assert not settled.champion and "it orders otherwise" in settled.why, settled
    assert not seen.failed and set(seen.versions) == {"1"}, "as a shadow nobody was answered by it"


@pytest.mark.slow
def test_a_version_that_people_click_on_less_is_taken_back(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    online = Online(log=f"{tmp_path}/log.parquet", every_s=0.5)
    canary = replace(QUICK, steps=(0.2, 1.0), answers=10_000, limits=Limits(online=online))
    with predicting(endpoint.url) as seen:
        version = endpoint.release(f"{runs}/again", "a test", canary).version
        wait_for(lambda: endpoint.status()["decisions"][0]["what"] == "problem", "that there is no log was said")
        log(tmp_path, {1: 0.05, version: 0.01})
        settled = endpoint.settled(version, timeout_s=120)
    assert settled and not settled.champion and settled.why.startswith("take back: its ctr is 0.0098"), settled
    assert not seen.failed


def test_a_process_that_ends_as_it_loads_is_said_in_words(endpoint: Endpoint) -> None:
    @ray_serve.deployment
    class Dies:
        def __init__(self) -> None:
            os._exit(3)

    with pytest.raises(RuntimeError):
        ray_serve.run(Dies.options(max_constructor_retry_count=1).bind(), name="dies", route_prefix=None)
    try:
        assert what_failed("dies") == DIED
    finally:
        ray_serve.delete("dies")


@pytest.mark.slow
def test_a_replica_and_the_conductor_die_and_nobody_notices(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    two = replace(endpoint, name="two", replicas=2, routers=1, state=f"{tmp_path}/endpoints", grpc_port=None)
    two.release(f"{runs}/good", "the first")
    with predicting(two.url) as seen:
        wait_for(lambda: len(two.status()["versions"][0]["replicas"]) == 2, "both replicas answered")
        os.kill(int(two.status()["versions"][0]["replicas"][0].partition(":")[2]), signal.SIGKILL)
        ray.kill(conductor_of("two"), no_restart=False)
        before = sum(seen.statuses.values())
        wait_for(lambda: sum(seen.statuses.values()) > before + 300, "requests went on")
        assert two.status()["versions"][0]["run"] == "good", "it restarts from what is on storage"
    two.stop()
    assert not seen.failed, seen.statuses


def test_a_version_that_does_not_load_changes_nothing(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    with predicting(endpoint.url) as seen:
        with pytest.raises(RunFailed, match=r"version \d+ does not load .*What answered before goes on"):
            endpoint.release(f"{runs}/crashes", "a test", QUICK)
        shutil.copytree(runs / "again", tmp_path / "altered")
        weights = next((tmp_path / "altered" / "export").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(CheckpointError, match=f"{weights.name} is missing or was altered"):
            endpoint.release(f"{tmp_path}/altered", "a test", QUICK)
        waits = replace(endpoint, replicas={"gpus": 1})  # for a GPU that is not there, until somebody gives up
        given_up = threading.Timer(5, _thread.interrupt_main)
        given_up.start()
        with pytest.raises(KeyboardInterrupt):
            waits.release(f"{runs}/again", "a test", QUICK)
        there = {name for name in ray_serve.status().applications if name.startswith("demo-")}
        assert there == {"demo-grpc", endpoint.status()["versions"][0]["app"]}, "nothing of it is left"
    assert not seen.failed and set(seen.versions) == {"1"}
    log = [entry for entry in Registry(endpoint.registry, endpoint.audit).log.entries() if entry.what == "refused"]
    assert len(log) == 1 and "RuntimeError: it does not load where it is served" in log[0].reason, log
    registry = Registry(endpoint.registry, endpoint.audit)
    assert registry.holder("demo", "challenger") is None and registry.verify() == []


@pytest.mark.slow
def test_a_rollback_has_the_replicas_of_now_and_nothing_is_undone_where_it_does_not_load(
    endpoint: Endpoint, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "good", tmp_path / "good")
    two = replace(endpoint, name="back", replicas=2, routers=1, state=f"{tmp_path}/endpoints", grpc_port=None)
    two.release(f"{tmp_path}/good", "the first")
    as_it_is = replace(two, replicas=None, port=None)  # as another command would find it
    as_it_is.release(f"{runs}/again", "a test", replace(QUICK, steps=(1.0,)))
    assert replicas(as_it_is) == [2, 2]
    as_it_is.hold(1.0, "at once")
    registry = Registry(two.registry, two.audit)
    wait_for(lambda: (holder := registry.holder("back", "champion")) and holder.version == 2, "version 2 is champion")
    weights = next((tmp_path / "good" / "export").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(RunFailed, match="version 1 does not load.*What answered before goes on"):
        as_it_is.rollback("slower than it seemed")
    holder = registry.holder("back", "champion")
    assert holder and holder.version == 2 and as_it_is.status()["versions"][0]["version"] == 2
    weights.write_bytes(whole)
    head = tmp_path / "good" / "export" / "export.json"
    text = head.read_text()
    head.write_text(text + " ")
    with pytest.raises(RunFailed, match="version 1 does not load .it is not what was registered: "):
        as_it_is.rollback("slower than it seemed")
    head.write_text(text)
    assert as_it_is.rollback("slower than it seemed") == "version 1 (good) answers again"
    wait_for(lambda: replicas(as_it_is) == [2], "what was taken back has gone")
    holder = registry.holder("back", "champion")
    assert holder and holder.version == 1 and registry.verify() == []
    as_it_is.release(f"{runs}/again", "once more", replace(QUICK, steps=(1.0,)))
    as_it_is.hold(1.0, "at once")
    wait_for(lambda: (holder := registry.holder("back", "champion")) and holder.version == 2, "version 2 is champion")
    there = Endpoint._deployed

    def beside(self: Endpoint, *of: Any) -> Any:
        registry.client.delete_registered_model_alias("back", "champion")
        return there(self, *of)

    monkeypatch.setattr(Endpoint, "_deployed", beside)
    with pytest.raises(ClusterError, match=r"version 1 \(good\) answers again, but the registry's champion is nobody"):
        as_it_is.rollback("slower than it seemed")
    assert any("it has no champion to take back" in d["why"] for d in as_it_is.status()["decisions"])
    registry.client.set_registered_model_alias("back", "champion", "2")  # others of this file verify the log
    two.stop()


def test_the_version_that_answers_is_told_to_answer_otherwise(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    one = replace(endpoint, name="more", routers=1, state=f"{tmp_path}/endpoints", grpc_port=None)
    with pytest.raises(RunFailed, match=r"version 1 does not load \(.*\)$"):  # nothing answered before
        replace(one, decoding={"lanes": 2}).release(f"{runs}/good", "it is no language model")
    one.release(f"{runs}/good", "the first")
    said: list[str] = []
    with pytest.raises(UserError, match="version 1 answers all requests already"):
        replace(one, replicas={"gpus": 0}).release(f"{runs}/good", "nothing new", say=said.append)
    assert said == ["routers, grpc_port and page are of when an endpoint starts: it runs, and has them as it began"]
    with pytest.raises(RunFailed, match="version 1 does not load .*What answered before goes on"):
        replace(one, decoding={"lanes": 2}).release(f"{runs}/good", "it is no language model")
    assert replicas(one) == [1]
    with predicting(one.url) as seen:
        assert replace(one, replicas=2).release(f"{runs}/good", "too slow").version == 1
        settled = one.settled(1, timeout_s=60)
        assert settled is not None and settled.champion and settled.why == "change: too slow"
        wait_for(lambda: replicas(one) == [2], "the one of before has gone")
    assert not seen.failed and set(seen.versions) == {"1"}, seen.statuses
    logged = [entry.what for entry in Registry(one.registry, one.audit).log.entries()]
    assert "change" in logged and Registry(one.registry, one.audit).verify() == []
    one.release(f"{runs}/again", "an A/B test", Canary(steps=(0.5,), seconds=1, answers=1000, patience_s=600))
    one.stop("seen enough")
    registry = Registry(one.registry, one.audit)
    last = [(entry.what, entry.details.get("version")) for entry in registry.log.entries()][-3:]
    assert last == [("take back", 2), ("withdraw", 2), ("stop", 1)] and registry.holder("more", "challenger") is None
    assert not [name for name in ray_serve.status().applications if name.partition("-")[0] == "more"]
    assert one.release(f"{runs}/good", "they ask again").version == 1
    settled = one.settled(1, timeout_s=60)
    assert settled is not None and settled.why == "start: they ask again" and replicas(one) == [2], (
        "as it answered last"
    )
    assert [entry.details["version"] for entry in registry.log.entries() if entry.what == "start"] == [1]
    for app in [name for name in ray_serve.status().applications if name.partition("-")[0] == "more"]:
        ray_serve.delete(app)  # beside rtrain, so that its conductor goes on
    assert "more" in endpoints()
    one.release(f"{runs}/good", "somebody shut Serve down")
    with predicting(one.url) as seen:
        wait_for(lambda: len(seen.versions.get("1", ())) > 10, "version 1 answers")
    assert not seen.failed, seen.statuses
    one.stop()
    assert "more" not in endpoints()


def replicas(endpoint: Endpoint) -> list[int]:
    """How many answer of each version."""
    there = ray_serve.status().applications
    apps = [of["app"] for of in endpoint.status()["versions"]]
    assert {name for name in there if name.startswith(f"{endpoint.name}-")} >= set(apps)
    found = [there[name] for name in there if name.startswith(f"{endpoint.name}-")]
    return [deployment.replica_states.get("RUNNING", 0) for of in found for deployment in of.deployments.values()]


def test_stages_are_not_released_where_one_model_answers(endpoint: Endpoint, runs: Path) -> None:
    registry = Registry(endpoint.registry, endpoint.audit)
    before = len(registry.versions(endpoint.name))
    with pytest.raises(UserError, match="what answers there is one model, not two stages"):
        replace(endpoint, stages=TwoStages(retriever="runs/nobody")).release(f"{runs}/wrong", "with a retrieval model")
    assert len(registry.versions(endpoint.name)) == before


def test_methods_and_paths_are_those_of_the_version(endpoint: Endpoint) -> None:
    for method, path, allowed in (
        ("GET", "predict", "POST"),
        ("DELETE", "schema", "GET"),
        ("OPTIONS", "predict", "POST"),
    ):
        refused = httpx.request(method, f"{endpoint.url}/{path}", timeout=60)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed), (method, path)
    csv = httpx.post(f"{endpoint.url}/predict", content=b"{}", headers={"content-type": "text/csv"}, timeout=60)
    assert csv.status_code == 415 and set(csv.json()) == {"detail"} and "'text/csv'" in csv.json()["detail"]
    (server,) = httpx.get(f"{endpoint.url}/openapi.json", timeout=60).json()["servers"]
    assert endpoint.url.endswith(server["url"]) and server["url"] == f"/{endpoint.name}"


def test_what_no_version_answered(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    """One that is full is 429, where none is left 503: at OpenAI's paths in its clients' form too."""
    narrow = Scale(at_once=1, waiting=1)
    one = replace(endpoint, name="one", replicas=narrow, routers=1, state=f"{tmp_path}/endpoints", grpc_port=None)
    one.release(f"{runs}/good", "the first")
    row = {"user": 1, "item": 2, "price": 0.5}
    bodies = [("predict", {"rows": [row] * 4000}), ("v1/completions", {"model": "one", "prompt": "x"})]

    def ask(path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{one.url}/{path}", json=body, timeout=60)

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda number: ask(*bodies[number % 2]), range(96)))
    full = [of for of in found if of.status_code == 429]
    assert {of.request.url.path for of in full} == {"/one/predict", "/one/v1/completions"}, Counter(map(str, found))
    ray_serve.delete(one.status()["versions"][0]["app"])
    gone = [ask(*body) for body in bodies]
    assert [of.status_code for of in gone] == [503, 503]
    for answer in (*full, *gone):
        said, busy = answer.json(), answer.status_code == 429
        assert answer.headers["retry-after"] == "1" and "gain" in said["detail"]
        if answer.request.url.path.endswith("predict"):
            assert set(said) == {"detail"}
        else:
            kind = "rate_limit_error" if busy else "server_error"
            assert (said["error"]["type"], said["error"]["message"]) == (kind, said["detail"])
    one.stop()


def test_it_says_how_it_is(endpoint: Endpoint) -> None:
    assert endpoints() == ["demo"]
    status = httpx.get(f"{endpoint.url}/-/endpoint", timeout=60).json()
    assert status["versions"][0]["role"] == "champion" and status["versions"][0]["share"] == 1.0
    page = httpx.get(f"{endpoint.url}/-/", timeout=60)
    assert "no version is being tried" in page.text and page.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{endpoint.url}/healthz", timeout=60).json()["run"] == "good"
    refused = httpx.post(f"{endpoint.url}/predict", json={"rows": [{}]}, timeout=60)
    assert refused.status_code == 422 and refused.json()["detail"].startswith("rows.0.user")
    with pytest.raises(ClusterError, match="endpoint 'nobody': none of that name runs"):
        replace(endpoint, name="nobody").status()
    with pytest.raises(UserError, match="no version is being tried"):
        endpoint.hold(0.5, "a test")


def test_grpc_asks_the_same_router(endpoint: Endpoint) -> None:
    """The answer and the version that HTTP gives for a key, and its refusals."""
    body = b'{"rows": [{"user": 1, "item": 2, "price": 0.5}]}'
    with grpc.insecure_channel(f"127.0.0.1:{endpoint.grpc_port}") as channel:
        ask = channel.unary_unary(
            "/rtrain.Model/Predict",
            request_serializer=Question.SerializeToString,
            response_deserializer=Answer.FromString,
        )
        for key in KEYS[:20]:
            over_http = httpx.post(
                f"{endpoint.url}/predict",
                content=body,
                headers={"x-rtrain-key": key, "content-type": "application/json"},
                timeout=60,
            )
            answer, call = ask.with_call(Question(json=body), timeout=60, metadata=(("x-rtrain-key", key),))
            assert over_http.status_code == 200 and answer.json == over_http.content
            version = dict(call.trailing_metadata())["x-rtrain-version"]
            assert version == over_http.headers["x-rtrain-version"]
        with pytest.raises(grpc.RpcError) as refused:
            ask(Question(json=b'{"rows": [{}]}'), timeout=60)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "rows.0.user: Field required" in refused.value.details()
