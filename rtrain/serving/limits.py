"""What one client may cost at Ray Serve's HTTP proxy: seconds in which it must send a request, and read the answer."""

import asyncio
from typing import Any

from rtrain.serving.bodies import BODY_S, MAX_BYTES, PASSED_BYTES, BodyLimits
from rtrain.serving.proxied import AtProxy

HEADERS_S = 15.0
"""Seconds in which a client that has connected must have sent the headers of a request."""
HEADERS_BYTES = 64 << 10
"""Bytes that it may send for them."""
READS_S = 30.0
"""Seconds for which a client may leave an answer unread."""


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
    limits = Middleware(BodyLimits, most_bytes=MAX_BYTES, most_s=BODY_S, held_bytes=PASSED_BYTES, outermost=True)
    return [limits, Middleware(AtProxy)]
