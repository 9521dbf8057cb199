"""Two stages behind HTTP: what both models say one after the other, refusals, its OpenAPI, and a release of one."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

import rtrain
from rtrain.endpoint.canary import Canary, Limits
from rtrain.endpoint.endpoint import Endpoint
from rtrain.errors import ConfigError, DataError, UserError
from rtrain.language.decoding import Decoding
from rtrain.serving.app import application_of
from rtrain.serving.recommender import MAX_ASKING
from rtrain.serving.scale import Scale
from rtrain.serving.waiting import what_failed
from rtrain.stages.config import TwoStages
from rtrain.stages.features import NoFeatures, SQLite, Store
from rtrain.stages.recommender import Recommender
from tests.cluster.conftest import free_port
from tests.cluster.planted import Planted
from tests.cluster.test_grpc import call, refusal
from tests.unit.release.runs import PASSES
from tests.unit.stages.shop import AGES, ITEMS, PRICES, USERS, ranker, retriever
from tests.unit.stages.test_recommender import Late, alike, answer


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> TwoStages:
    folder = tmp_path_factory.mktemp("shop")
    store = SQLite(path=f"{folder}/features.db")
    store.fill("item", {i: {"price": PRICES[i]} for i in range(ITEMS)})
    store.fill("user", {u: {"age": AGES[u]} for u in range(USERS)})
    return TwoStages(
        retriever=retriever(folder), ranker=ranker(folder), candidates=20, features=store, timeout_ms=30_000
    )


@pytest.fixture(scope="module")
def served(serve_port: int, shop: TwoStages) -> Iterator[Any]:
    found = rtrain.serve(shop, port=serve_port, grpc_port=free_port())
    yield found
    found.stop()


def test_answers_are_those_of_both_models_also_of_many_at_once(served: Any, shop: TwoStages) -> None:
    here = Recommender(shop)
    asked = [([n % USERS, (7 * n) % USERS][: 1 + n % 2], 1 + n % 20) for n in range(30)]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda one: served.recommend(*one), asked))
    for (whom, k), found in zip(asked, answers, strict=True):
        wanted = answer(here, here.want(whom, k))[0].lists
        assert all(alike(mine, its) for mine, its in zip(found, wanted, strict=True)), whom
    late = served.recommend([3], 5, context=[{"hour": 23.0}])
    assert alike(late[0], answer(here, here.want([3], 5, context=[{"hour": 23.0}]))[0].lists[0])
    one = httpx.get(f"{served.url}/recommend", params={"user": 3, "k": 2}, timeout=60).json()
    assert one["items"] == [[i for i, _ in served.recommend([3], 2)[0]]] and one["without"] == []
    assert served.recommend([]) == []
    health = httpx.get(f"{served.url}/healthz", timeout=60).json()
    assert (health["run"], health["retriever"], health["candidates"]) == ("dlrm", "mf", 20)


def test_grpc_answers_as_http_does(served: Any) -> None:
    body = {"whom": [3, 4], "k": 5, "context": [{"hour": 23.0}, {"hour": 1.0}]}
    with grpc.insecure_channel(served.rpc) as channel:
        found = json.loads(call(channel, "Recommend", body))
        assert found == httpx.post(f"{served.url}/recommend", json=body, timeout=60).json()
        assert json.loads(call(channel, "Schema")) == httpx.get(f"{served.url}/schema", timeout=60).json()
        error, fields, _ = refusal(channel, "Recommend", body | {"context": [{"hour": "late"}, {}]})
        assert (error.code(), fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["context[0].hour"]), error
        error, *_ = refusal(channel, "Predict", body)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error


def test_what_does_not_fit_is_one_line(served: Any) -> None:
    for body, said in (
        ({"whom": [USERS]}, "whom: there is no user 40"),
        ({"whom": [1], "k": 21}, "k: 20 candidates are ranked, got 21"),
        ({"whom": [1], "context": [{"hour": "late"}]}, "context[0].hour: Input should be a valid number"),
        ({"whom": [1], "context": [{"huor": 1}]}, "context[0]: the ranking model has no column 'huor'"),
        ({"whom": [1], "context": "x"}, "context: Input should be a valid list"),
        ({"whom": [1], "more": 1}, "more: Extra inputs are not permitted"),
    ):
        refused = httpx.post(f"{served.url}/recommend", json=body, timeout=60)
        assert refused.status_code == 422 and refused.json()["detail"].startswith(said), refused.text
    many = httpx.post(f"{served.url}/recommend", json={"whom": [1] * (MAX_ASKING + 1)}, timeout=60)
    assert (many.status_code, f"at most {MAX_ASKING}" in many.json()["detail"]) == (422, True)
    with pytest.raises(DataError, match="there is no user 99"):
        served.recommend([99])


def test_it_answers_as_its_openapi_says(served: Any) -> None:
    tried = set()
    for found in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
        operation = found.ok()

        @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            # Names that the data do not know are refused: no schema says which there are.
            from schemathesis.specs.openapi.checks import positive_data_acceptance

            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

        answers()
        tried.add(operation.label)
    assert tried == {"POST /recommend", "GET /recommend", "GET /schema", "GET /healthz"}
    asked = httpx.get(f"{served.url}/openapi.json", timeout=60).json()["paths"]["/recommend"]["get"]["parameters"]
    assert {of["name"]: of["schema"]["type"] for of in asked if of["name"] in ("user", "k")} == dict.fromkeys(
        ("user", "k"), "integer"
    ), "the data call users by numbers"
    assert next(of["schema"]["maximum"] for of in asked if of["name"] == "k") == 20, "candidates"
    options = httpx.request("OPTIONS", f"{served.url}/recommend", timeout=60)
    assert (options.status_code, options.headers["allow"]) == (405, "GET, POST")
    nobody = httpx.get(f"{served.url}/recommend", params={"user": USERS}, timeout=60).json()["detail"]
    assert nobody.startswith(f"user: there is no user {USERS}"), nobody


def test_two_stages_that_do_not_fit_do_not_start(shop: TwoStages, serve_port: int) -> None:
    with pytest.raises(ConfigError, match="TwoStages.item: the ranking model has no 'itm'"):
        rtrain.serve(replace(shop, item="itm"), port=serve_port)


def test_gpus_and_shards_of_what_finds_items_are_refused(shop: TwoStages) -> None:
    for finds in (shop, shop.retriever):
        with pytest.raises(ConfigError, match="Scale.gpus: what finds items computes on CPU. Leave it out"):
            application_of(finds, scale=Scale(gpus=0.25))
        with pytest.raises(ConfigError, match="Scale.shards: of a model that scores rows alone. Leave it out"):
            application_of(finds, scale=Scale(shards=2))
    for none in (shop, shop.retriever, shop.ranker):
        with pytest.raises(ConfigError, match="decoding: of a language model alone. Leave it out"):
            application_of(none, decoding=Decoding())


@dataclass(frozen=True)
class NothingInReplicas:
    """A store that is away for who deploys, and empty where it is served."""

    def open(self) -> Store:
        try:
            ray_serve.get_replica_context()
        except RayServeException:
            return Late("item", error=True).open()
        return NoFeatures().open()


def test_why_a_replica_does_not_start_is_told(served: Any, shop: TwoStages, serve_port: int) -> None:
    with pytest.raises(ConfigError, match="needs 'price' of each item"):  # before any starts, where that can be seen
        application_of(replace(shop, features=NoFeatures()))
    application = application_of(replace(shop, features=NothingInReplicas()), max_constructor_retry_count=1)
    with pytest.raises(RuntimeError):
        ray_serve.run(application, name="lacks", route_prefix="/lacks")
    try:
        assert "needs 'price' of each item" in what_failed("lacks") and what_failed("rtrain") == ""
    finally:
        ray_serve.delete("lacks")


def test_features_that_do_not_come_are_nobodys_fault_who_asks(served: Any, shop: TwoStages) -> None:
    application = application_of(replace(shop, features=Late("item", error=True)))
    ray_serve.run(application, name="late", route_prefix="/late")
    try:
        url = served.url + "/late"
        answer = httpx.get(f"{url}/recommend", params={"user": 3, "k": 2}, timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"].startswith("features of each item did not come in")
        unknown = httpx.get(f"{url}/recommend", params={"user": 99, "k": 2}, timeout=60)
        assert unknown.status_code == 422, "what who asks can mend is said before"
    finally:
        ray_serve.delete("late")


@pytest.mark.slow
def test_a_stage_is_released_as_any_version(served: Any, shop: TwoStages, serve_port: int, tmp_path: Path) -> None:
    """The other stage stays; blue-green, then back."""
    endpoint = Endpoint(
        name="home", port=serve_port, registry=f"sqlite:///{tmp_path}/registry.db", audit=f"{tmp_path}/audit",
        state=f"{tmp_path}/endpoints", stages=replace(shop, ranker=""),
    )  # fmt: skip
    planted = Planted(dim=8, bottom=(8,), top=(16,), turns_round=True)
    first, second, turned = (
        export.removesuffix("/export")
        for export in (
            shop.ranker, ranker(tmp_path, name="second"), ranker(tmp_path, name="turned", model=planted)
        )
    )  # fmt: skip
    other = retriever(tmp_path)
    for run in (first, second, turned):
        assert PASSES.judge(run, None if run == first else first).passed
    endpoint.release(first, "the first")
    try:
        assert httpx.get(f"{endpoint.url}/recommend", params={"user": 3}, timeout=60).headers["x-rtrain-version"] == "1"
        quick = Canary(steps=(1.0,), seconds=0.5, answers=3, patience_s=60)
        later = replace(endpoint, stages=None)  # as a command line that does not say it again
        with pytest.raises(UserError, match=r"version 1 answers already, and would have another retriever"):
            replace(endpoint, stages={"retriever": other}).release(first, "share by share")
        version = replace(endpoint, stages={"retriever": other}).release(second, "a new order", quick).version
        for _ in range(20):
            httpx.get(f"{endpoint.url}/recommend", params={"user": 3}, timeout=60)
        settled = endpoint.settled(version, timeout_s=60)
        assert settled is not None and settled.champion, settled
        assert later.stages_of_release() == replace(shop, retriever=other, ranker=f"{second}/export")
        here = Recommender(replace(shop, retriever=other, ranker=second))
        found = httpx.get(f"{endpoint.url}/recommend", params={"user": 3, "k": 4}, timeout=60)
        assert found.json()["items"][0] == [i for i, _ in answer(here, here.want([3], 4))[0].lists[0]]
        assert later.rollback("as it was").startswith("version 1 (dlrm)")
        assert later.stages_of_release() == shop, "what goes back is of the stages that it was of"
        slowly = Canary(steps=(1.0,), seconds=1.0, answers=10_000, patience_s=90, limits=Limits(drift=None))
        bad = later.release(turned, "upside down", slowly).version
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(endpoint.settled, bad, timeout_s=120)
            while not waits.done():
                for user in range(USERS):
                    body = {"whom": [user, (user + 1) % USERS], "k": 3}
                    httpx.get(f"{endpoint.url}/recommend", params={"user": user}, timeout=60).raise_for_status()
                    httpx.post(f"{endpoint.url}/recommend", json=body, timeout=60).raise_for_status()
        ended = waits.result()
        assert ended is not None and not ended.champion and "take back: it orders otherwise" in ended.why, ended
        found = httpx.get(f"{endpoint.url}/recommend", params={"user": 3, "k": 4}, timeout=60)
        here = Recommender(shop)
        assert found.json()["items"][0] == [i for i, _ in answer(here, here.want([3], 4))[0].lists[0]]
    finally:
        endpoint.stop()
