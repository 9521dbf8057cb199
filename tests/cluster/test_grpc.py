"""gRPC answers what HTTP does, to the last bit, and says with a status and by the field's name what it refuses."""

import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from ray import serve as ray_serve

import rtrain
from recipes.dlrm_movielens import debug
from rtrain.errors import ClusterError, ConfigError
from rtrain.serving.answers import MAX_ROWS
from rtrain.serving.bodies import MAX_BYTES
from rtrain.serving.scale import RETRY_S
from rtrain.serving.wire import DETAILS, SERVICE, Answer, Question
from tests.cluster.conftest import free_port
from tests.cluster.test_serving_api import DENSE

ROW = {"user_id": 1, "item_id": 2, "hour": 3} | dict.fromkeys(DENSE, 0.25)
CODE = grpc.StatusCode
LOCAL = ipaddress.ip_address("127.0.0.1")


@pytest.fixture(scope="module")
def result(joined_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    storage = str(tmp_path_factory.mktemp("served"))
    changes = {"storage": storage, "duration.steps": 5, "handoff.serve_check": "false", "tracking.to": ()}
    return rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)


@pytest.fixture(scope="module")
def served(result: Any, serve_port: int) -> Iterator[Any]:
    # Four clients have room, and not many more.
    serving = rtrain.serve(result, port=serve_port, grpc_port=free_port(), replicas=rtrain.Scale(at_once=4, waiting=4))
    yield serving
    serving.stop()
    assert not ray_serve.status().applications


@pytest.fixture(scope="module")
def channel(served: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.rpc) as made:
        yield made


def call(channel: grpc.Channel, method: str, body: Any = b"", timeout: float = 60, **metadata: str) -> bytes:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = channel.unary_unary(
        f"/{SERVICE}/{method}", request_serializer=Question.SerializeToString, response_deserializer=Answer.FromString
    )
    answer = asked(Question(json=sent), timeout=timeout, metadata=tuple(metadata.items()))
    return bytes(answer.json)


def refusal(channel: grpc.Channel, method: str, body: Any = b"", **more: Any) -> tuple[grpc.RpcError, list[str], float]:
    """The error, the fields that it names, and after how many seconds to ask again (0: it does not say)."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, body, **more)
    return caught.value, *said(caught.value)


def said(error: Any) -> tuple[list[str], float]:
    status = status_pb2.Status()
    for name, value in error.trailing_metadata():
        if name == DETAILS:
            status.ParseFromString(value)
            assert (status.code, status.message) == (error.code().value[0], error.details())
    wrong, again = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        assert detail.Unpack(wrong) or detail.Unpack(again)
    return [of.field for of in wrong.field_violations], again.retry_delay.ToTimedelta().total_seconds()


def test_answers_are_those_of_http(served: Any, channel: grpc.Channel) -> None:
    rows = [ROW | {"user_id": user, "item_id": item} for user in range(1, 40) for item in (2, 3, 5)]
    for body in ({"rows": rows}, {"rows": [ROW]}, {"rows": []}):
        over_http = httpx.post(f"{served.url}/predict", json=body, timeout=60)
        assert over_http.status_code == 200
        assert call(channel, "Predict", body) == over_http.content
        assert call(channel, "Predict", body, application="rtrain") == over_http.content
    assert call(channel, "Schema") == httpx.get(f"{served.url}/schema").content
    assert len({*json.loads(call(channel, "Predict", {"rows": rows}))["predictions"]}) > 10


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"rows": [ROW, ROW | {"user_id": "x"}]}, ["rows.1.user_id"]),
        ({"rows": [ROW | {"hour": None}, ROW | {"item_id": 1.5}]}, ["rows.0.hour", "rows.1.item_id"]),
        ({"rows": [{name: ROW[name] for name in ROW if name != "item_id"}]}, ["rows.0.item_id"]),
        ({"rows": [ROW | {"colour": 1}]}, ["rows.0.colour"]),
        ({"rows": 3}, ["rows"]),
        ({"rows": [], "more": 1}, ["more"]),
        ({}, ["rows"]),
        ({"rows": [ROW] * (MAX_ROWS + 1)}, ["rows"]),
        (b"{", None),
        (b" " * (MAX_BYTES + 1), []),
    ],
    ids=["type", "two", "missing", "extra", "no-list", "key", "empty", "rows", "no-json", "bytes"],
)
def test_each_bad_input_is_named_in_http_s_words(
    served: Any, channel: grpc.Channel, body: Any, fields: list[str] | None
) -> None:
    error, named, again = refusal(channel, "Predict", body)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    over_http = httpx.post(
        f"{served.url}/predict", content=content, headers={"content-type": "application/json"}, timeout=60
    )
    assert over_http.status_code in (400, 413, 422)
    assert (error.code(), error.details(), again) == (CODE.INVALID_ARGUMENT, over_http.json()["detail"], 0)
    assert fields is None or named == fields


@pytest.mark.slow
def test_ids_that_the_model_has_not(channel: grpc.Channel) -> None:
    error, named, _ = refusal(channel, "Predict", {"rows": [ROW, ROW | {"user_id": 10**9}]})
    assert error.code() == CODE.INVALID_ARGUMENT and "user_id" in error.details()
    assert len(named) == 1


def test_more_bytes_than_a_body_may_have(channel: grpc.Channel) -> None:
    error, _, again = refusal(channel, "Predict", b" " * (MAX_BYTES + (1 << 20)))
    assert (error.code(), again) == (CODE.RESOURCE_EXHAUSTED, 0)


def test_another_application_or_method(channel: grpc.Channel) -> None:
    error, _, _ = refusal(channel, "Predict", {"rows": [ROW]}, application="none")
    assert (error.code(), error.details()) == (CODE.NOT_FOUND, "application 'none': there is none here, but 'rtrain'")
    error, _, _ = refusal(channel, "Recommend", {"whom": [1]})
    assert error.code() == CODE.UNIMPLEMENTED and "rankers predict" in error.details()
    error, _, _ = refusal(channel, "Train")
    assert error.code() == CODE.UNIMPLEMENTED


@pytest.mark.slow
def test_a_deadline(channel: grpc.Channel) -> None:
    """It ends the one that it is of, and no other."""
    error, _, _ = refusal(channel, "Predict", {"rows": [ROW] * MAX_ROWS}, timeout=0.005)
    assert error.code() == CODE.DEADLINE_EXCEEDED
    assert call(channel, "Predict", {"rows": [ROW]})


def test_four_clients_at_once_have_each_their_own(served: Any) -> None:
    bodies = [{"rows": [ROW | {"user_id": user}] * (1 + user)} for user in range(1, 41)]
    alone = [json.loads(httpx.post(f"{served.url}/predict", json=body).content)["predictions"] for body in bodies]

    def client(number: int) -> list[list[float]]:
        with grpc.insecure_channel(served.rpc) as own:
            mine = bodies[number::4]
            return [json.loads(call(own, "Predict", body))["predictions"] for body in mine]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(client, range(4)))
    for number in range(4):
        for got, wanted in zip(together[number], alone[number::4], strict=True):
            # Another batch size sums in another order: float32 rounding of a logit, some 1e-7.
            assert got == pytest.approx(wanted, abs=1e-6)


def test_it_listens_to_this_machine_alone(served: Any) -> None:
    port = int(served.rpc.rpartition(":")[2])
    listens = {of.laddr.ip for of in psutil.net_connections("tcp") if of.status == "LISTEN" and of.laddr.port == port}
    assert listens and {ipaddress.ip_address(ip.removeprefix("::ffff:")) for ip in listens} == {LOCAL}


@pytest.mark.slow
def test_reflection_tells_the_service(channel: grpc.Channel) -> None:
    known = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in known.get_services()
    file: FileDescriptorProto = known.FindFileContainingSymbol(SERVICE)
    assert [method.name for method in file.service[0].method] == ["Predict", "Recommend", "Schema"]


@pytest.mark.slow
def test_ports_that_cannot_be(result: Any, served: Any, serve_port: int) -> None:
    for port in (serve_port, 0):
        with pytest.raises(ConfigError, match=f"grpc_port: .* not HTTP's {serve_port}, got {port}"):
            rtrain.serve(result, port=serve_port, grpc_port=port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"grpc_port: {port} on 127.0.0.1 cannot be used"):
            rtrain.serve(result, port=serve_port, grpc_port=port)
    assert served.predict([]) == [], "nothing took its place"


@pytest.mark.slow
def test_too_many_are_told_when_to_ask_again(served: Any, channel: grpc.Channel) -> None:
    seen: list[Any] = []

    def ask() -> None:
        with grpc.insecure_channel(served.rpc) as own:
            try:
                seen.append(call(own, "Predict", {"rows": [ROW] * MAX_ROWS}))
            except grpc.RpcError as error:
                seen.append(error)

    clients = [threading.Thread(target=ask) for _ in range(24)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    refused = [error for error in seen if isinstance(error, grpc.RpcError)]
    assert len(seen) == 24 and 0 < len(refused) < 24
    for error in refused:
        assert (error.code(), said(error)) == (CODE.RESOURCE_EXHAUSTED, ([], RETRY_S))
    assert call(channel, "Predict", {"rows": [ROW]})  # there is room again


@pytest.mark.slow
def test_without_a_replica_it_is_unavailable(served: Any, channel: grpc.Channel) -> None:
    """Last: it takes away what answers, and leaves what listens."""
    ray_serve.delete("rtrain")
    error, _, again = refusal(channel, "Predict", {"rows": [ROW]})
    assert (error.code(), again) == (CODE.UNAVAILABLE, RETRY_S)
