"""The messages as they are made are those that `model.proto` says, and refusals name their fields."""

import json
import re
from pathlib import Path

import grpc
import pytest

import rtrain.serving
from rtrain.serving.wire import CODES, PATHS, Answer, Question, fields_of, refused, refused_as

PROTO = (Path(rtrain.serving.__file__).parent / "model.proto").read_text()


def test_the_messages_are_those_of_the_file() -> None:
    messages = re.findall(r"^message (\w+) {\n((?:  .*\n)*)}", PROTO, re.M)
    assert [name for name, _ in messages] == ["Question", "Answer"]
    for message, (name, body) in zip((Question, Answer), messages, strict=True):
        fields = re.findall(r"^  (\w+) (\w+) = (\d+);$", body, re.M)
        found = [(of.name, of.number, of.type) for of in message.DESCRIPTOR.fields]
        assert found == [(field, int(number), of_type(kind)) for kind, field, number in fields]
        assert message.DESCRIPTOR.full_name == f"rtrain.{name}" and len(found) == body.count("\n")
    (service,) = Question.DESCRIPTOR.file.services_by_name.values()
    calls = re.findall(r"^  rpc (\w+)\((\w+)\) returns \((\w+)\);$", PROTO, re.M)
    assert [(m.name, m.input_type.name, m.output_type.name) for m in service.methods] == calls
    assert {name for name, *_ in calls} == set(PATHS) and f"package {service.full_name.split('.')[0]};" in PROTO


def of_type(kind: str) -> int:
    return {"bytes": 12, "string": 9}[kind]


def test_each_code_is_explained_in_the_file() -> None:
    for code in {*CODES.values(), grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND}:
        assert re.search(rf"^//   {code.name} +\S", PROTO, re.M), code


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        ("rows.1.age: Input should be a number; rows.2.age: Field required", ["rows.1.age", "rows.2.age"]),
        ("seen[3]: there is no item 7 in the data; valid are 0..5", ["seen[3]"]),
        ("rows: 10001 in one request; at most 10000", ["rows"]),
        ("", []),
    ],
)
def test_fields_of_a_refusal(why: str, fields: list[str]) -> None:
    found = fields_of(why)
    assert [field for field, _ in found] == fields
    assert not fields or "; ".join(f"{field}: {said}" for field, said in found) == why


def test_a_long_refusal_fits_a_trailer() -> None:
    body = json.dumps({"detail": "rows.0.age: " + "é" * 100_000}).encode()
    found = refused_as(422, body, 1.0)
    (_, trailer) = found.trailers[0]
    assert len(found.why.encode()) * 3 + len(trailer) * 4 / 3 < 32 << 10 and found.why.endswith("...")


def test_a_server_s_own_error_is_internal_whatever_it_says() -> None:
    found = refused_as(500, b"Internal Server Error", 1.0)
    assert (found.code, found.why) == (grpc.StatusCode.INTERNAL, "Internal Server Error")
    assert refused(grpc.StatusCode.UNAVAILABLE, "x", retry_s=1.5).trailers != refused(found.code, "x").trailers
