"""What all served exports share: limits of a request, every refusal in one line of JSON, and how a router asks them."""

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import psutil
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rtrain.errors import did_you_mean, one_line
from rtrain.serving.bodies import BODY_S, HELD_BYTES, MAX_BYTES, BodyLimits, refusal
from rtrain.version import VERSION

MAX_ROWS = 10_000
"""Rows that one request may carry, and that are scored in one forward pass."""


SAID = 5
"""Problems of a request that a refusal names."""
UNREAD = "There was an error parsing the body"
"""FastAPI's words."""
KEY_HEADER = "x-rtrain-key"
"""Of a question: who asks, for an endpoint, which gives each the same version again."""
VERSION_HEADER = "x-rtrain-version"
"""Of an endpoint's answer: the version that gave it."""
GONE_S = 3600.0
"""Seconds after which a router that takes no part of an answer any more counts as gone; it ends what it leaves."""
KEPT = ("allow", "retry-after")
"""Headers of an answer that a router passes on, beside its content's type."""
Headers = Sequence[tuple[str, str]]


class Relayed(NamedTuple):
    """An HTTP answer on its way through a router."""

    status: int
    content_type: str
    body: bytes
    memory: int
    """Bytes that the replica holds, of its own and of libraries."""
    replica: str
    version: str = ""
    """Of an endpoint, that answered."""
    more: Headers = ()
    """Of its headers those that `KEPT` names."""


class Relays:
    """A deployment behind FastAPI that answers the questions of a router, or of gRPC, as it does a client's."""

    async def relay(self, method: str, path: str, query: bytes, body: bytes, headers: Headers = ()) -> Relayed:
        """What its HTTP would answer; `path` without any prefix, `headers` beside those of any JSON."""
        parts: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            parts.append(message)

        await self(_scope(method, path, query, body, headers), _receive(body), send)  # type: ignore[operator]
        return _head_of(parts[0])._replace(body=b"".join(part.get("body", b"") for part in parts[1:]))

    async def relay_parts(
        self, method: str, path: str, query: bytes, body: bytes, headers: Headers = ()
    ) -> AsyncGenerator[Relayed | bytes, None]:
        """The same as it comes: first the answer without its body, then the parts of that. Who leaves this ends it."""
        parts = asyncio.Queue[MutableMapping[str, Any] | None]()

        async def send(message: MutableMapping[str, Any]) -> None:
            parts.put_nowait(message)

        asked: Any = self(_scope(method, path, query, body, headers), _receive(body), send)  # type: ignore[operator]
        task = asyncio.ensure_future(asked)
        task.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                if part["type"] == "http.response.start":
                    yield _head_of(part)
                elif part.get("body"):
                    yield part["body"]
            await task  # its error, where it had one
        finally:
            task.cancel()

    async def scores(
        self, method: str, path: str, query: bytes, body: bytes, headers: Headers = ()
    ) -> list[dict[Any, float]]:
        """What is said of each row, or, for each who asks, of all items that could be recommended.

        Nothing, of what is refused, which `relay` says, and of what ranks none.
        """
        return []


def _receive(body: bytes) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """ASGI's of a body that is there whole."""
    given = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal given
        if given:  # asked by what streams, to hear of a client that leaves; an answer at once would be asked for ever
            await asyncio.sleep(GONE_S)
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _scope(method: str, path: str, query: bytes, body: bytes, headers: Headers) -> MutableMapping[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                    *((name.encode(), value.encode()) for name, value in headers)],
        "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "state": {},
    }  # fmt: skip


def _head_of(part: Mapping[str, Any]) -> Relayed:
    head = {name.lower(): value for name, value in part["headers"]}
    me = _this_process()
    return Relayed(
        part["status"],
        head.get(b"content-type", b"application/json").decode(),
        b"",
        me.memory_info().rss,
        f"{socket.gethostname()}:{me.pid}",
        head.get(VERSION_HEADER.encode(), b"").decode(),
        tuple((name, head[name.encode()].decode()) for name in KEPT if name.encode() in head),
    )


@lru_cache(maxsize=1)
def _this_process() -> psutil.Process:
    """Looked up once: finding it costs more than asking it."""
    return psutil.Process()


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is not JSON"},
    408: {"model": Refusal, "description": "The body was too slow"},
    413: {"model": Refusal, "description": "Too many bytes"},
    415: {"model": Refusal, "description": "The body says that it is no JSON"},
    422: {"model": Refusal, "description": "Rows or keys that do not fit"},
    429: {"model": Refusal, "description": "As many wait as may"},
}

UNANSWERED: dict[int | str, dict[str, Any]] = {
    503: {"model": Refusal, "description": "A shard of the tables, or the store of features, does not answer"},
    504: {"model": Refusal, "description": "No answer in time"},
}


def new_api(held_bytes: int = HELD_BYTES) -> FastAPI:
    """Without its own OpenAPI, which is of every export: a replica gives the one of the export that it serves.

    `held_bytes`: of all bodies that it has at once.
    """
    api = FastAPI(title="rtrain", version=VERSION, openapi_url=None)
    api.add_middleware(BodyLimits, most_bytes=MAX_BYTES, most_s=BODY_S, held_bytes=held_bytes, json_alone=True)
    api.add_exception_handler(RequestValidationError, _refused)  # type: ignore[arg-type]
    api.add_exception_handler(HTTPException, _unread)  # type: ignore[arg-type]
    return api


async def _refused(request: Request, error: RequestValidationError) -> JSONResponse:
    """In one line, as every other refusal."""
    broken = next((e for e in error.errors() if e["type"] == "json_invalid"), None)
    if broken:
        at, why = broken["loc"][-1], broken["ctx"]["error"]
        return JSONResponse({"detail": f"the body: it is no JSON: {why}, at letter {at}"}, 400)
    problems = dict.fromkeys(f"{where_of(e['loc'][1:]) or 'the body'}: {e['msg']}" for e in error.errors())
    return JSONResponse({"detail": first_few(list(problems))}, 422)


async def _unread(request: Request, error: HTTPException) -> Response:
    """What FastAPI says of a body that it cannot read has no reason, and of a path's methods the first route's."""
    why, headers = str(error.detail), {name.lower(): value for name, value in (error.headers or {}).items()}
    if (error.status_code, why) == (400, UNREAD):
        why = f"the body: it is no JSON: {_cannot_be_read(error.__cause__)}"
    if error.status_code == 405:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if there := _methods(request.app).get(path):
            headers["allow"] = there
    return JSONResponse(refusal(request.url.path, error.status_code, why), error.status_code, headers)


def _cannot_be_read(cause: BaseException | None) -> str:
    if isinstance(cause, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(cause, RecursionError):
        return "it nests too deep"
    if isinstance(cause, ValueError):  # of int()
        return f"it has a whole number of more than {sys.get_int_max_str_digits()} digits"
    return one_line(cause) if cause else "it cannot be read"


@lru_cache(maxsize=8)
def _methods(api: FastAPI) -> dict[str, str]:
    """Of each path, as an Allow header names them."""
    paths = get_openapi(title=api.title, version=api.version, routes=api.routes)["paths"]
    return {path: ", ".join(sorted(map(str.upper, of))) for path, of in paths.items()}


def first_few(problems: Sequence[str]) -> str:
    """In one line; how many more there are."""
    more = f"; and {len(problems) - SAID} more" if len(problems) > SAID else ""
    return "; ".join(problems[:SAID]) + more


def where_of(loc: Sequence[Any]) -> str:
    """A field's place, without what pydantic calls the members of a union."""
    return ".".join(str(part) for part in loc if "[" not in str(part))


def takes(*names: str) -> Any:
    """For a route: refuse what its query has beside these, and one that it has twice."""

    def check(request: Request) -> None:
        seen = set[str]()
        for name, _ in request.query_params.multi_items():
            if name not in names:
                do = did_you_mean(name, names) or f". Known: {', '.join(names)}"
                raise HTTPException(422, f"{name[:60]}: there is no such parameter{do}")
            if name in seen:
                several = ", or POST several as whom" if name == "user" else ""
                raise HTTPException(422, f"{name}: it is given twice. Give it once{several}")
            seen.add(name)

    return Depends(check)
