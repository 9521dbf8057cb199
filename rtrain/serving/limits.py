"""What one client may cost: bytes of a body, and the time in which it must send its headers and its body."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

MAX_BYTES = 32 << 20
"""Bytes of one request's body: 3 KB for each of the rows that a request may have."""
BODY_S = 30.0
"""Seconds in which a client must have sent its body."""
HEADERS_S = 15.0
"""Seconds in which a client that has connected must have sent the headers of a request."""
HEADERS_BYTES = 64 << 10
"""Bytes that it may send for them."""
REQUEST_S = 60.0
"""Seconds after which a request is given up."""
REQUEST_ID = b"x-request-id"
DISCARDED = 4 * MAX_BYTES
"""Bytes that are read on of a body that is refused: most clients look for the answer when all is sent, and one that is
closed before is a broken connection to them."""
SILENT_S = 2.0
"""Seconds without a byte of it after which nothing more is waited for."""
READS_S = 30.0
"""Seconds for which a client may leave an answer unread."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def refusal(path: str, status: int, why: str) -> dict[str, Any]:
    """The body of one that no model gave; at OpenAI's paths its clients find in it what they read."""
    found: dict[str, Any] = {"detail": why}
    if "/v1/" in path:
        kind = {429: "rate_limit_error", 503: "server_error"}.get(status, "invalid_request_error")
        found["error"] = {"message": why, "type": kind, "param": None, "code": "busy" if status == 429 else None}
    return found


class BodyLimits:
    """ASGI middleware: the whole body is here, within both limits, before anything is parsed.

    413 when it is longer than `most_bytes`, by its Content-Length or by what comes; 408 when it is not
    complete after `most_s`. Both close the connection; of a body that is too long the rest is read before, within
    limits of its own.
    `json_alone`: 415 where a request says that its body is something else; one that says nothing is taken for JSON.
    `outermost`: a refusal has the request's id, which Serve's own middleware, behind this one, gives all other answers.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        most_bytes: int,
        most_s: float,
        json_alone: bool = False,
        outermost: bool = False,
    ):
        self.app, self.most_bytes, self.most_s = app, most_bytes, most_s
        self.json_alone, self.outermost = json_alone, outermost

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
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
            body = await asyncio.wait_for(self._read(receive), self.most_s)
        except TimeoutError:
            return await self._refuse(scope, send, 408, f"the body was not complete after {self.most_s:g} s")
        if body is None:
            return None  # the client has gone
        if len(body) > self.most_bytes:
            return await self._refuse(scope, send, 413, f"a body of more than {self.most_bytes} bytes", receive)
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()  # that the client has gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self.app(scope, whole, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or as much of it as is more than enough."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self.most_bytes or not message.get("more_body", False):
                return bytes(body)

    async def _discard(self, receive: Receive) -> None:
        """Read on what a client still sends."""
        left = DISCARDED
        while left > 0:
            message = await asyncio.wait_for(receive(), SILENT_S)
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):  # also of one that has gone
                return

    async def _refuse(
        self, scope: MutableMapping[str, Any], send: Send, status: int, why: str, receive: Receive | None = None
    ) -> None:
        """`receive`: what is left of the body is read first."""
        asks_before = b"expect" in dict(scope["headers"])
        if receive and not asks_before:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._discard(receive), self.most_s)
        body = json.dumps(refusal(scope["path"], status, why)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))
        if self.outermost:
            headers.append((REQUEST_ID, dict(scope["headers"]).get(REQUEST_ID, str(uuid4()).encode())))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def with_limits(
    protocol: type[Any], *, headers_s: float = HEADERS_S, headers_bytes: int = HEADERS_BYTES, reads_s: float = READS_S
) -> type[Any]:
    """uvicorn's HTTP protocol, but that it closes the connection of a client that costs too much.

    That is one whose next request has no headers after `headers_s`, however slowly more come, or after
    `headers_bytes`, and one that leaves answers unread for `reads_s`. uvicorn itself limits only how long a connection
    stays open between requests. Once the headers are there, `BodyLimits` has its say.
    """

    class Limited(protocol):
        _late: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _sent = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            self._sent += len(data)
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:  # a request is being answered
                self._stop_waiting()
            elif self._sent > headers_bytes:
                self.transport.abort()
            else:
                self._wait()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self._unread or self.loop.call_later(reads_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._unread)
            self._unread = None

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            _cancel(self._unread)
            self._unread = None
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(headers_s, self.transport.close)

        def _stop_waiting(self) -> None:
            _cancel(self._late)
            self._sent, self._late = 0, None

    return Limited


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def limit_clients_of_proxy() -> list[Any]:
    """What Ray Serve calls in each of its HTTP proxies before it listens, for the middlewares that it adds.

    A node's proxy does where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names this function when Ray starts there.
    Bodies are waited for in the proxy then: a slow one takes no place among the requests of a replica.
    """
    from starlette.middleware import Middleware
    from uvicorn.protocols.http import auto

    auto.AutoHTTPProtocol = with_limits(auto.AutoHTTPProtocol)
    return [Middleware(BodyLimits, most_bytes=MAX_BYTES, most_s=BODY_S, outermost=True)]
