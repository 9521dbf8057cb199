"""At Ray Serve's HTTP proxy: what no client may ask of it, and its own answers in the words of other refusals."""

import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from rtrain.serving.bodies import REQUEST_ID, REQUEST_S, RETRY_S, App, Message, Receive, Scope, Send, refusal

TIMEOUT = b"x-request-timeout-seconds"
"""With which a client may have its request given up sooner; Serve would also take a later time, or none at all."""
GOES_ON = b"x-request-disconnect-disabled"
"""With which a client could leave, and have its answer computed all the same."""
TOLD = {
    408: (re.compile(r"Request \S+ timed out"), 504, "no answer in time. Ask for less at once, or again"),
    429: (re.compile(r"Request dropped due to backpressure"), 429, "as many wait as may. Ask again"),
    503: (
        re.compile(r"Deployment\(.*\) is unavailable"),
        503,
        "nothing answers here: it did not start",
    ),
}
"""Status of Serve's own -> what it says, and what is said in its place. Another application's answers stay."""


class AtProxy:
    """ASGI middleware of the proxy, around all applications."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _may(name, value)]}
        began: Message | None = None

        async def told(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start" and message["status"] in TOLD:
                began = message
                return
            if began is not None:
                start, began = began, None
                start, message = _told(scope["path"], start, message)
                await send(start)
            await send(message)

        return await self.app(scope, receive, told)


def _may(name: bytes, value: bytes) -> bool:
    if name.lower() == GOES_ON:
        return False
    return name.lower() != TIMEOUT or 0 < _number(value) <= REQUEST_S


def _number(value: bytes) -> float:
    try:
        found = float(value)
    except ValueError:
        return 0.0
    return found if isfinite(found) else 0.0


def _told(path: str, start: Message, body: Message) -> tuple[Message, Message]:
    """An answer as it goes out."""
    words, status, why = TOLD[start["status"]]
    headers: Mapping[bytes, bytes] = dict(start["headers"])
    plain = headers.get(b"content-type", b"").startswith(b"text/plain")
    if not plain or not words.match(body.get("body", b"").decode(errors="replace")):
        return start, body
    content = json.dumps(refusal(path, status, why)).encode()
    kept: list[Any] = [(REQUEST_ID, headers[REQUEST_ID])] if REQUEST_ID in headers else []
    return (
        {**start, "status": status, "headers": [
            *kept, (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()),
            (b"retry-after", str(RETRY_S).encode()),
        ]},
        {"type": "http.response.body", "body": content},
    )  # fmt: skip
