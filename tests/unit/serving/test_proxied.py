"""What Ray Serve's proxy says by itself, in rtrain's words; and headers that would have it wait without end."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve._private.http_util import get_http_response_status, send_http_response_on_exception
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rtrain.serving.proxied import AtProxy

ID = b"x-request-id"


def through(answer: list[dict[str, Any]], path: str = "/predict", headers: Any = ()) -> tuple[Any, list[Any]]:
    """What of a request comes to an application, and of its answer to the client."""
    came, sent = list[Any](), list[Any]()

    async def app(scope: MutableMapping[str, Any], _: Any, send: Any) -> None:
        came.append(scope)
        for message in answer:
            await send(message)

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await AtProxy(app)({"type": "http", "path": path, "headers": list(headers)}, None, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    return came[0], sent


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (TimeoutError(), 504, "no answer in time. Ask for less at once, or again"),
        (BackPressureError(3, 3, status_code=429, retry_after_s=1), 429, "as many wait as may. Ask again"),
        (DeploymentUnavailableError(DeploymentID("Ranker", "demo")), 503, "nothing answers here: it did not start"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/demo/v1/completions"])
def test_what_serve_says_itself_is_said_as_all_refusals_are(error: Exception, status: int, why: str, path: str) -> None:
    own: Any = send_http_response_on_exception(get_http_response_status(error, 60.0, "some-id"), False)
    own[0]["headers"].append((ID, b"some-id"))  # Serve's own middleware does
    _, (start, body) = through(own, path)
    headers, said = dict(start["headers"]), json.loads(body["body"])
    assert (start["status"], said["detail"], headers[b"retry-after"]) == (status, why, b"1")
    assert headers[b"content-type"] == b"application/json" and headers[ID] == b"some-id"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert ("error" in said) == ("/v1/" in path)


@pytest.mark.parametrize("status", [200, 404, 429, 503])
@pytest.mark.parametrize("kind", [b"text/plain", b"application/json"])
def test_what_applications_say_stays(status: int, kind: bytes) -> None:
    said: list[dict[str, Any]] = [
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]},
        {"type": "http.response.body", "body": b"Request of mine", "more_body": True},
        {"type": "http.response.body", "body": b" and more"},
    ]
    assert through(said)[1] == said


@pytest.mark.parametrize(
    ("value", "stays"), [(b"5", True), (b"60", True), (b"61", False), (b"0", False), (b"-1", False), (b"nan", False),
                         (b"inf", False), (b"soon", False)],
)  # fmt: skip
def test_a_client_may_have_less_time_and_no_more(value: bytes, stays: bool) -> None:
    headers = [(b"X-Request-Timeout-Seconds", value), (b"x-request-disconnect-disabled", b"?1"), (b"accept", b"*/*")]
    came, _ = through([], headers=headers)
    assert came["headers"] == headers[:1] * stays + headers[2:]
