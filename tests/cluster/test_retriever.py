"""Retrieval exports behind HTTP: items as the encoders find them, one line for what does not fit, and its OpenAPI."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

import rtrain
from rtrain import HSTU, MF, Duration, Evaluation, Histories, HitRate, Pairs, RandomPerUser, Run
from rtrain.errors import ClusterError, DataError, UserError
from rtrain.export.encoders import Encoders
from rtrain.serving.retriever import MAX_WHOM
from tests.cluster.conftest import free_port
from tests.cluster.test_grpc import call, refusal

USERS, ITEMS, NOW = 40, 60, 1_700_000_000


def exported(folder: Path, model: Any) -> str:
    draw = np.random.default_rng(0)
    rows = [(u, int(i)) for u in range(USERS) for i in draw.choice(ITEMS, size=12, replace=False)]
    user, item = (np.array(x) for x in zip(*rows, strict=True))
    words = isinstance(model, MF)
    columns = {
        "user_id": [f"u{u}" for u in user] if words else user,
        "item_id": [f"i{i}" for i in item] if words else item,
        "timestamp": NOW + np.arange(len(rows)),
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    source = f"{folder}/rows.parquet"
    data = (
        Pairs(source=source, users=USERS, items=ITEMS, raw_ids=True, split=RandomPerUser(valid=0.1, test=0.1))
        if words
        else Histories(source=source, users=USERS, items=ITEMS, length=8)
    )
    run = Run(
        name="found", model=model, data=data, global_batch=64, duration=Duration(epochs=2), storage=f"{folder}/runs",
        evaluation=Evaluation(monitor="hit_rate@5"), metrics=(HitRate(k=5),),
    )  # fmt: skip
    result = rtrain.train(run, launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    return result.export


@pytest.fixture(scope="module")
def pairs(serve_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Encoders]]:
    export = exported(tmp_path_factory.mktemp("pairs"), MF(dim=8))
    serving = rtrain.serve(export, port=serve_port, grpc_port=free_port())
    yield serving, Encoders(export)
    serving.stop()


def alike(found: Any, wanted: Any) -> bool:
    """The same items in the same order, scores to float32's last bits: batches of another size round otherwise."""
    (names, scores), (right, theirs) = (
        ([i for of in those for i, _ in of], [s for of in those for _, s in of]) for those in (found, wanted)
    )
    return list(map(len, found)) == list(map(len, wanted)) and names == right and np.allclose(scores, theirs, atol=1e-6)


def test_grpc_answers_as_http_does(pairs: tuple[Any, Encoders]) -> None:
    served, _ = pairs
    body = {"whom": ["u1", "u2"], "k": 5, "seen": [["i1"], []]}
    with grpc.insecure_channel(served.rpc) as channel:
        found = json.loads(call(channel, "Recommend", body))
        assert found == httpx.post(f"{served.url}/recommend", json=body, timeout=60).json() and len(found["items"]) == 2
        assert json.loads(call(channel, "Schema")) == httpx.get(f"{served.url}/schema", timeout=60).json()
        error, *_ = refusal(channel, "Recommend", {"whom": ["nobody"]})
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "there is no user 'nobody'" in error.details()
        error, *_ = refusal(channel, "Recommend", {"whom": ["\ud800"]})
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "half of a surrogate pair" in error.details()
        error, *_ = refusal(channel, "Predict", {"rows": []})
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error


def test_answers_are_those_of_the_encoders_also_of_many_at_once(pairs: tuple[Any, Encoders]) -> None:
    served, encoders = pairs
    whom = [f"u{n}" for n in range(USERS)]
    assert alike(served.recommend(whom, 7), encoders.recommend(whom, 7))
    seen = [[f"i{n}", "i1"] for n in range(USERS)]
    assert alike(served.recommend(whom, 60, seen=seen), encoders.recommend(whom, 60, seen=seen))
    assert served.recommend([]) == []
    asked = [([f"u{n % USERS}" for n in range(first, first + size)], k) for first, size, k in zip(
        range(30), [1, 3, 7] * 10, [1, 5, 20] * 10, strict=True
    )]  # fmt: skip
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda one: served.recommend(*one), asked))
    assert all(alike(answer, encoders.recommend(*one)) for answer, one in zip(answers, asked, strict=True))
    asked = httpx.get(f"{served.url}/openapi.json", timeout=60).json()["paths"]["/recommend"]["get"]["parameters"]
    assert [of["schema"]["type"] for of in asked if of["name"] == "user"] == ["string"], "the data call users by words"
    one = httpx.get(f"{served.url}/recommend", params={"user": "u3", "k": 2}).json()
    assert one["items"] == [[i for i, _ in encoders.recommend(["u3"], 2)[0]]]
    assert httpx.get(f"{served.url}/healthz").json()["items"] == len(encoders.items)
    new = httpx.get(f"{served.url}/recommend", params={"user": "new", "k": 2, "unknown": "popular"}).json()
    popular = encoders.recommend(["new"], 2, unknown="popular")[0]
    assert (new["items"], new["unknown"], one["unknown"]) == ([[i for i, _ in popular]], [0], [])


def test_what_does_not_fit_is_one_line(pairs: tuple[Any, Encoders]) -> None:
    served, _ = pairs
    for body, said in (
        ({"whom": ["nobody"]}, "whom: there is no user 'nobody'"),
        ({"whom": [7]}, "whom: the data call each user by strings"),
        ({"whom": ["u1"], "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"whom": ["u1"], "k": "3"}, "k: Input should be a valid integer"),
        ({"whom": ["u1"], "times": [[1]]}, "times: this model reads users' ids"),
        ({"whom": ["u1"], "seen": [[], []]}, "seen: 2 lists for 1 who ask"),
        ({"whom": ["u1"], "seen": [["i0", "gone"]]}, "seen[0]: there is no item 'gone'"),
        ({"whom": ["u1"], "extra": 1}, "extra: Extra inputs are not permitted"),
        ({}, "whom: Field required"),
    ):
        refused = httpx.post(f"{served.url}/recommend", json=body, timeout=60)
        assert refused.status_code == 422 and refused.json()["detail"].startswith(said), refused.text
    for query, said in (
        ("user=u1&n=3", "n: there is no such parameter. Known: user, k, unknown"),
        ("user=u1&unkown=popular", "unkown: there is no such parameter; did you mean 'unknown'?"),
        ("user=u1&user=u2", "user: it is given twice. Give it once, or POST several as whom"),
        ("user=u1&k=3&k=4", "k: it is given twice. Give it once"),
        ("k=3", "user: Field required"),
    ):
        refused = httpx.get(f"{served.url}/recommend?{query}", timeout=60)
        assert (refused.status_code, refused.json()["detail"]) == (422, said)
    many = httpx.post(f"{served.url}/recommend", json={"whom": ["u1"] * (MAX_WHOM + 1)}, timeout=60)
    assert (many.status_code, f"at most {MAX_WHOM}" in many.json()["detail"]) == (422, True)
    with pytest.raises(DataError, match="there is no user 'x'"):
        served.recommend(["x"])
    with pytest.raises(UserError, match="answers /recommend alone, not /predict"):
        served.predict({"a": 1})


def test_it_answers_as_its_openapi_says(pairs: tuple[Any, Encoders]) -> None:
    tried = set()
    for found in schemathesis.openapi.from_url(f"{pairs[0].url}/openapi.json").get_all_operations():
        operation = found.ok()

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            # Names that the data do not know are refused: no schema says which there are.
            from schemathesis.specs.openapi.checks import positive_data_acceptance

            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

        answers()
        tried.add(operation.label)
    assert tried == {"POST /recommend", "GET /recommend", "GET /schema", "GET /healthz"}


def test_a_model_of_histories_asks_for_items_and_their_times(pairs: Any, serve_port: int, tmp_path: Path) -> None:
    """After the other: both would have one route, on the port of the cluster's one proxy."""
    export = exported(tmp_path, HSTU(dim=8, layers=1, heads=1, buckets=8))
    with pytest.raises(ClusterError, match=rf"listens on {serve_port} already.* stop what is served there .*rtrain"):
        rtrain.serve(export, port=free_port())
    pairs[0].stop()
    served, encoders = rtrain.serve(export, port=serve_port), Encoders(export)
    try:
        whom, times = [[1, 2, 3], [4]], [[NOW, NOW + 5, NOW + 60], [NOW]]
        found = served.recommend(whom, 5, times=times)
        assert alike(found, encoders.recommend(whom, 5, times=times))
        assert not {1, 2, 3} & {item for item, _ in found[0]}  # what was had is not offered again
        with pytest.raises(DataError, match="reads when each item was had"):
            served.recommend(whom)
        one = httpx.get(f"{served.url}/recommend", params={"user": "3"}, timeout=60)
        assert one.status_code == 422 and "POST them as whom" in one.json()["detail"]
        assert httpx.get(f"{served.url}/schema").json()["required"] == ["whom", "times"]
    finally:
        served.stop()
