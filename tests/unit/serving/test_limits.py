"""Headers that are too slow, bodies that are too long or too slow, over a real socket to a real uvicorn."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from rtrain.serving.bodies import BodyLimits
from rtrain.serving.limits import with_limits
from rtrain.serving.ports import lets_clients_do_as_they_like

HEADERS_S, BODY_S = 2.0, 6.0  # a busy machine must not be too late with what is in time
app = FastAPI()
app.add_middleware(BodyLimits, most_bytes=1000, most_s=BODY_S, held_bytes=1500)
parsed: list[int] = []
go_on = threading.Event()


@app.get("/long")
async def long() -> str:
    return "x" * 10_000_000


@app.post("/")
async def size(body: dict[str, Any]) -> int:
    parsed.append(len(body["x"]))
    return len(body["x"])


@app.post("/late")
async def late(body: dict[str, Any]) -> int:
    while not go_on.is_set():
        await asyncio.sleep(0.01)
    return len(body["x"])


@contextmanager
def served(app: FastAPI, protocol: type[Any] = AutoHTTPProtocol) -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)  # who comes before the server is up waits for it
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", http=protocol))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    protocol = with_limits(AutoHTTPProtocol, headers_s=HEADERS_S, headers_bytes=20_000, reads_s=2.0)
    with served(app, protocol) as port:
        yield port


def test_a_proxy_that_limits_nobody_is_seen(port: int) -> None:
    assert not lets_clients_do_as_they_like("127.0.0.1", port)
    with served(FastAPI()) as other:
        assert lets_clients_do_as_they_like("127.0.0.1", other)
    assert not lets_clients_do_as_they_like("127.0.0.1", other), "nobody is there any more"


def test_within_the_limits(port: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/", json={"x": "a" * 900}, trust_env=False)
    assert (answer.status_code, answer.json()) == (200, 900)


def test_a_long_body_is_refused_before_it_is_parsed(port: int) -> None:
    before = len(parsed)
    whole = httpx.post(f"http://127.0.0.1:{port}/", json={"x": "a" * 2000}, trust_env=False)
    assert (whole.status_code, whole.json()) == (413, {"detail": "a body of 2008 bytes; at most 1000"})

    def chunks() -> Iterator[bytes]:
        yield b'{"x": "'
        for _ in range(20):
            yield b"a" * 100
        yield b'"}'

    chunked = httpx.post(f"http://127.0.0.1:{port}/", content=chunks(), trust_env=False)  # it names no length
    assert (chunked.status_code, chunked.json()) == (413, {"detail": "a body of more than 1000 bytes"})
    assert len(parsed) == before


def test_who_sends_all_before_the_answer_is_read_has_the_answer(port: int) -> None:
    """As urllib does; to be closed while it sends would be a broken connection to it."""
    long = 20_000_000
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {long}\r\n\r\n".encode())
        for _ in range(long // 100_000):
            client.sendall(b" " * 100_000)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"a body of 20000000 bytes; at most 1000" in answer


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"])
def test_who_sends_no_body_before_the_answer_has_it_too(port: int, more: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + more + b"Content-Length: 20000000\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 "), answer


def test_a_slow_body_is_given_up(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
        answer = b""
        while more := slow.recv(4096):  # ends when the server closes the connection
            answer += more
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"not complete after 6 s" in answer


def test_no_more_than_so_many_bytes_are_there_at_once(port: int) -> None:
    """Of those that are answered, and of those that come: a thousand slow ones would else have a thousand bodies."""
    go_on.clear()
    asked = [f"http://127.0.0.1:{port}/late", f"http://127.0.0.1:{port}/"]
    head = b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"

    def taken() -> httpx.Response:
        """One that comes while those below do is refused."""
        while (found := httpx.post(asked[0], json={"x": "a" * 800}, trust_env=False, timeout=60)).status_code == 429:
            pass
        return found

    with ExitStack() as open_ones, ThreadPoolExecutor(1) as pool:
        first = pool.submit(taken)
        try:
            comes = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            comes.sendall(head + b'{"x": "' + b"a" * 400)
            until = time.monotonic() + 30
            while (refused := httpx.post(asked[1], json={"x": "a" * 600}, trust_env=False)).status_code == 200:
                assert time.monotonic() < until, "both are not there yet"
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            why = "bodies of more than 1500 bytes wait here. Ask again, or for less at once"
            assert refused.json() == {"detail": why}
            assert httpx.post(asked[1], json={"x": "a" * 100}, trust_env=False).json() == 100, "it fits"
            comes.sendall(b"a" * 400)
            answer = b"".join(iter(lambda: comes.recv(4096), b""))  # until it is closed
            assert answer.startswith(b"HTTP/1.1 429 ") and b"bodies of more than 1500 bytes" in answer, answer
        finally:
            go_on.set()
        assert first.result().json() == 800
    assert httpx.post(asked[1], json={"x": "a" * 900}, trust_env=False).json() == 900, "nothing is left of any"


def test_slow_headers_are_cut_off_and_slow_bodies_are_not(port: int) -> None:
    with ExitStack() as open_ones:
        silent, slow, late, patient = (
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(4)
        )
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n"
        late.sendall(head + b"\r\n" + b'{"x": "a"}')  # a good request, and on the same connection half of another
        patient.sendall(head + b"\r\n" + b'{"x"')
        assert late.recv(1000).startswith(b"HTTP/1.1 200")
        late.sendall(b"POST /")
        time.sleep(1.5 * HEADERS_S)
        with suppress(OSError):  # the server has closed it
            for byte in head:
                slow.sendall(bytes([byte]))
        patient.sendall(b': "a"}')
        assert patient.recv(1000).startswith(b"HTTP/1.1 200"), "its headers were there in time"
        for closed in (silent, slow, late):
            with suppress(ConnectionResetError):
                while closed.recv(1000):  # what is left of an answer; it would wait for 30 s if nobody closed
                    pass


def test_headers_without_end_and_answers_that_nobody_reads(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as endless:
        endless.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError):  # the server has closed it
            for number in range(1000):
                endless.sendall(b"X-%d: " % number + b"a" * 1000 + b"\r\n")
                time.sleep(0.001)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.settimeout(30)
        deaf.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(4)
        received = 0
        with suppress(ConnectionResetError):
            while more := deaf.recv(1 << 20):
                received += len(more)
        assert received < 10_000_000, "the whole answer was kept for a client that did not read"
