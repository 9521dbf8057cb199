"""What the bodies of requests may cost: bytes of one and of all, and the time in which one must have come."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

MAX_BYTES = 32 << 20
"""Bytes of one request's body: 3 KB for each of the rows that a request may have."""
BODY_S = 30.0
"""Seconds in which a client must have sent its body."""
REQUEST_S = 60.0
"""Seconds after which a request is given up."""
REQUEST_ID = b"x-request-id"
DISCARDED = 4 * MAX_BYTES
"""Bytes that are read on of a body that is refused: most clients look for the answer when all is sent, and one that is
closed before is a broken connection to them."""
SILENT_S = 2.0
"""Seconds without a byte of it after which nothing more is waited for."""
HELD_BYTES = 2 * MAX_BYTES
"""Bytes of all bodies that are at once in a replica; as JSON that is read they take some ten times as much."""
PASSED_BYTES = 8 * MAX_BYTES
"""The same of what passes them on: a proxy, or an endpoint's router."""
GONE = 0
"""In the place of a status: nobody is there to be answered."""
RETRY_S = 1
"""Seconds after which who was refused may ask again."""

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def refusal(path: str, status: int, why: str) -> dict[str, Any]:
    """The body of one that no model gave; at OpenAI's paths its clients find in it what they read."""
    found: dict[str, Any] = {"detail": why}
    if "/v1/" in path:
        kind = {429: "rate_limit_error", 503: "server_error", 504: "server_error"}.get(status, "invalid_request_error")
        found["error"] = {"message": why, "type": kind, "param": None, "code": "busy" if status == 429 else None}
    return found


@dataclass
class _Body:
    """What has come of a body."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    complete: bool = False

    def add(self, message: Message) -> int:
        part = message.get("body", b"")
        self.parts.append(part)
        self.size += len(part)
        self.complete = not message.get("more_body", False)
        return len(part)

    def emptied(self) -> int:
        size, self.size = self.size, 0
        self.parts.clear()
        return size


class BodyLimits:
    """ASGI middleware: the whole body is here, within both limits, before anything is parsed.

    413 when it is longer than `most_bytes`, by its Content-Length or by what comes; 408 when it is not complete after
    `most_s`; 429 when those of all requests that come or are answered are more than `held_bytes`. All close the
    connection; of a body that is refused the rest is read before, within limits of its own.
    `json_alone`: 415 where a request says that its body is something else; one that says nothing is taken for JSON.
    `outermost`: a refusal has the request's id, which Serve's own middleware, behind this one, gives all other answers.
    """

    def __init__(
        self,
        app: App,
        *,
        most_bytes: int,
        most_s: float,
        held_bytes: int = HELD_BYTES,
        json_alone: bool = False,
        outermost: bool = False,
    ):
        self.app, self.most_bytes, self.most_s, self.held_bytes = app, most_bytes, most_s, held_bytes
        self._held = 0
        self.json_alone, self.outermost = json_alone, outermost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body()
        try:
            return await self._answer(scope, receive, send, body)
        finally:
            self._held -= body.size

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: "_Body") -> None:
        said = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if self.json_alone and said and not said.endswith(b"json"):
            why = f"content-type: {said.decode('latin-1')[:100]!r} is not read here. Send application/json"
            return await self._refuse(scope, send, 415, why, receive)
        if self.json_alone and not said:  # or FastAPI takes it for bytes
            scope = {**scope, "headers": [*scope["headers"], (b"content-type", b"application/json")]}
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self.most_bytes:
            why = f"a body of {int(declared)} bytes; at most {self.most_bytes}"
            return await self._refuse(scope, send, 413, why, receive)
        try:
            came = await asyncio.wait_for(self._read(receive, body), self.most_s)
        except TimeoutError:
            return await self._refuse(scope, send, 408, f"the body was not complete after {self.most_s:g} s")
        if came == GONE:
            return None
        if came != 200:
            self._held -= body.emptied()
        if came == 413:
            return await self._refuse(scope, send, 413, f"a body of more than {self.most_bytes} bytes", receive)
        if came == 429:
            why = f"bodies of more than {self.held_bytes} bytes wait here. Ask again, or for less at once"
            return await self._refuse(scope, send, 429, why, None if body.complete else receive)
        content = b"".join(body.parts)
        body.parts.clear()
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()  # that the client has gone
            given = True
            return {"type": "http.request", "body": content, "more_body": False}

        return await self.app(scope, whole, send)

    async def _read(self, receive: Receive, body: "_Body") -> int:
        """The body, or as much of it as is more than enough; 200, or the status to refuse it with, or `GONE`."""
        while not body.complete:
            message = await receive()
            if message["type"] != "http.request":
                return GONE
            self._held += body.add(message)
            if body.size > self.most_bytes:
                return 413
            if body.size < self._held > self.held_bytes:  # alone it is not too much
                return 429
        return 200

    async def _discard(self, receive: Receive) -> None:
        """Read on what a client still sends."""
        left = DISCARDED
        while left > 0:
            message = await asyncio.wait_for(receive(), SILENT_S)
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):  # also of one that has gone
                return

    async def _refuse(self, scope: Scope, send: Send, status: int, why: str, receive: Receive | None = None) -> None:
        """`receive`: what is left of the body is read first."""
        asks_before = b"expect" in dict(scope["headers"])
        if receive and not asks_before:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._discard(receive), self.most_s)
        body = json.dumps(refusal(scope["path"], status, why)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))
        if status == 429:
            headers.append((b"retry-after", str(RETRY_S).encode()))
        if self.outermost:
            headers.append((REQUEST_ID, dict(scope["headers"]).get(REQUEST_ID, str(uuid4()).encode())))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
