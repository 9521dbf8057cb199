"""The messages of `model.proto`, and refusals of HTTP as gRPC has them.

The messages are described here, not generated: two of one field each, and no code that is bound to a protobuf version.
`tests/unit/serving/test_wire.py` holds them against the file.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

SERVICE = "rtrain.Model"
PATHS = {"Predict": ("POST", "/predict"), "Recommend": ("POST", "/recommend"), "Schema": ("GET", "/schema")}
"""Method -> what HTTP calls it."""
DETAILS = "grpc-status-details-bin"
"""Trailer in which clients of all languages look for google.rpc.Status."""
LONGEST = 2000
"""Letters of a refusal: a client takes 8 KB of trailers, and has the line twice."""
FIELD = re.compile(r"([A-Za-z_][\w.\[\]-]*): ")
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.UNIMPLEMENTED,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP's status -> gRPC's; any other is INTERNAL."""


def _described() -> descriptor_pb2.FileDescriptorProto:
    of = descriptor_pb2.FieldDescriptorProto
    found = descriptor_pb2.FileDescriptorProto(name="rtrain/serving/model.proto", package="rtrain", syntax="proto3")
    for name in ("Question", "Answer"):
        body = of(name="json", json_name="json", number=1, type=of.TYPE_BYTES, label=of.LABEL_OPTIONAL)
        found.message_type.add(name=name, field=[body])
    service = found.service.add(name="Model")
    for method in PATHS:
        service.method.add(name=method, input_type=".rtrain.Question", output_type=".rtrain.Answer")
    return found


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_described().SerializeToString())  # the same again changes nothing
Question: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("rtrain.Question"))
"""A request: HTTP's body in `json`."""
Answer: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("rtrain.Answer"))
"""An answer: HTTP's body in `json`."""


class Refused(NamedTuple):
    """How a call ends that is not answered."""

    code: grpc.StatusCode
    why: str
    trailers: Sequence[tuple[str, str | bytes]]


def refused(code: grpc.StatusCode, why: str, *, retry_s: float | None = None) -> Refused:
    """With what a client's program can read: the fields that do not fit, or when to ask again."""
    # Details travel percent-encoded, and a trailer's size is bounded.
    why = why if len(why) <= LONGEST else why[: LONGEST - 3] + "..."
    status = status_pb2.Status(code=code.value[0], message=why)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        wrong = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in fields_of(why)]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=wrong))
    if retry_s is not None:
        again = error_details_pb2.RetryInfo()
        again.retry_delay.FromNanoseconds(int(retry_s * 1e9))
        status.details.add().Pack(again)
    return Refused(code, why, ((DETAILS, status.SerializeToString()),))


def refused_as(status: int, body: bytes, retry_s: float) -> Refused:
    """What HTTP refused."""
    code = CODES.get(status, grpc.StatusCode.INTERNAL)
    try:
        why = str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):  # a server's own error is no JSON
        why = body.decode(errors="replace") or f"HTTP {status}"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        why = "this model has no such method: rankers predict, retrievers and two stages recommend"
    again = code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    return refused(code, why, retry_s=retry_s if again else None)


def fields_of(why: str) -> list[tuple[str, str]]:
    """Each field that a refusal names, with what is wrong with it: `rows.0.age: ...; rows.3.age: ...`."""
    found: list[tuple[str, str]] = []
    for part in why.split("; "):
        if named := FIELD.match(part):
            found.append((named[1], part[named.end() :]))
        elif found:  # a sentence with a semicolon
            field, said = found[-1]
            found[-1] = (field, f"{said}; {part}")
    return found
