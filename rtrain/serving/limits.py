"""What one client may cost: bytes of a body, and the time in which it must send its headers and its body."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

HEADERS_S = 15.0
"""Seconds in which a client that has connected must have sent the headers of a request."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BodyLimits:
    """ASGI middleware: the whole body is here, within both limits, before anything is parsed.

    413 when it is longer than `most_bytes`, by its Content-Length or by what comes; 408 when it is not
    complete after `most_s`. Both close the connection, since the rest of the body may still be under way.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], *, most_bytes: int, most_s: float):
        self.app, self.most_bytes, self.most_s = app, most_bytes, most_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > self.most_bytes:
            return await self._refuse(send, 413, f"a body of {int(said)} bytes; at most {self.most_bytes}")
        try:
            body = await asyncio.wait_for(self._read(receive), self.most_s)
        except TimeoutError:
            return await self._refuse(send, 408, f"the body was not complete after {self.most_s:g} s")
        if body is None:
            return None  # the client has gone
        if len(body) > self.most_bytes:
            return await self._refuse(send, 413, f"a body of more than {self.most_bytes} bytes")
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

    @staticmethod
    async def _refuse(send: Send, status: int, why: str) -> None:
        body = json.dumps({"detail": why}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def with_header_limit(protocol: type[Any], most_s: float) -> type[Any]:
    """uvicorn's HTTP protocol, but that a connection is closed whose next request has no headers after `most_s`.

    uvicorn itself limits only how long a connection stays open between requests. The time counts from the connection
    or the first byte after a request, however slowly more come; once the headers are there, `BodyLimits` has its say.
    """

    class Limited(protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:  # a request is being answered
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(most_s, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Limited


def limit_headers_in_proxy() -> list[Any]:
    """What Ray Serve calls in each of its HTTP proxies before it listens; it adds no middleware.

    A node's proxy does where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names this function when Ray starts there.
    """
    from uvicorn.protocols.http import auto

    auto.AutoHTTPProtocol = with_header_limit(auto.AutoHTTPProtocol, HEADERS_S)
    return []
