"""What a router counts of texts: tokens, events, and streams that began well and then say of an error."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from rtrain.endpoint.streams import STREAM, Opened, asked_of_text, broken, counted, prompt_of, status_of, tokens_of
from rtrain.serving.answers import Relayed
from rtrain.serving.openai import event

FINE, WRONG, DONE = event({"choices": []}), event({"error": {"message": "no"}}), b"data: [DONE]\n\n"
COUNTS = event({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 7}})
SLY = event({"choices": [{"text": 'a"usage": {"completion_tokens": 9}\n\ndata: {"error"'}]})
"""A text that says what only the counts may."""


def answer(body: bytes, content_type: str = STREAM) -> Relayed:
    return Relayed(200, content_type, body, 0, "here:1")


class Parts:
    """As Serve gives them."""

    def __init__(self, *parts: bytes):
        self.parts, self.cancelled = parts, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part

    def cancel(self) -> None:
        self.cancelled = True


def test_whole_answers() -> None:
    assert tokens_of(answer(json.dumps({"usage": {"completion_tokens": 7}}).encode(), "application/json")) == 7
    assert (tokens_of(answer(FINE + FINE + DONE)), status_of(answer(FINE + DONE))) == (3, 200)
    assert tokens_of(answer(FINE + SLY + COUNTS + DONE)) == 7
    assert status_of(answer(FINE + WRONG + DONE)) == 500
    assert status_of(answer(WRONG, "application/json")) == 200, "no stream"


def test_a_stream_that_says_of_an_error_has_failed() -> None:
    async def read(*parts: bytes) -> tuple[Opened, Parts, list[bytes]]:
        given = Parts(*parts)
        found = Opened(answer(b""), given, 0.0)
        return found, given, [part async for part in found.parts()]

    found, given, parts = asyncio.run(read(FINE, FINE, DONE))
    assert (found.status, found.events, parts, given.cancelled) == (200, 3, [FINE, FINE, DONE], True)
    found, _, parts = asyncio.run(read(FINE, WRONG, DONE))
    assert (found.status, parts) == (500, [FINE, WRONG, DONE])
    assert json.loads(broken(ValueError("why")).removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_tokens_are_counted_however_events_come() -> None:
    """One by one, several at once, cut anywhere; the counts go out only to who asked for them."""
    whole = FINE + SLY + COUNTS + DONE
    cuts = [(whole,), (FINE + SLY, COUNTS + DONE), *((whole[:at], whole[at:]) for at in range(1, len(whole), 7))]

    async def read(parts: tuple[bytes, ...], hides: bool) -> tuple[Opened, bytes]:
        found = Opened(answer(b""), Parts(*parts), 0.0, hides)
        return found, b"".join([part async for part in found.parts()])

    for parts in cuts:
        found, out = asyncio.run(read(parts, True))
        assert (found.status, found.tokens, found.events, out) == (200, 7, 3, FINE + SLY + DONE)
        found, out = asyncio.run(read(parts, False))
        assert (found.tokens, found.events, out) == (7, 4, whole)
    found, out = asyncio.run(read((FINE, SLY[:-1]), True))
    assert (found.tokens, out) == (0, FINE + SLY[:-1]), "nothing that came is held back at the end"


@pytest.mark.parametrize(
    ("asked", "hides"),
    [
        ({}, True),
        ({"stream_options": None}, True),
        ({"stream_options": {"include_usage": False}}, True),
        ({"stream_options": {"include_usage": True}}, False),
        ({"stream_options": 3}, False),
        ({"stream_options": {"include_usage": "x"}}, False),
    ],
)
def test_a_stream_is_asked_for_its_counts(asked: dict[str, object], hides: bool) -> None:
    """What does not fit goes on as it is, to be refused."""
    body = json.dumps(asked | {"prompt": "é"}).encode()
    told, hidden = counted(body)
    assert hidden is hides
    wanted = asked | {"prompt": "é"} | ({"stream_options": {"include_usage": True}} if hides else {})
    assert json.loads(told) == wanted


def test_who_asks_and_whether_it_streams() -> None:
    asked = json.dumps({"stream": True, "user": "u"}).encode()
    assert asked_of_text("v1/completions", asked) == asked_of_text("v1/chat/completions", asked) == (True, "u")
    assert asked_of_text("predict", asked) == asked_of_text("v1/completions", b"{") == (False, "")
    assert asked_of_text("v1/completions", b'[{"stream": true}]') == (False, "")
    assert asked_of_text("v1/completions", b'{"stream": "yes"}') == (False, "")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": "def f("}, "def f("),
        ({"prompt": ["a", "b"]}, "a"),
        ({"prompt": [1, 2]}, ""),
        ({"prompt": [[1], [2]]}, ""),
        ({"prompt": []}, ""),
        ({"prompt": None}, ""),
        ({"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "why?"}]}, "why?"),
        ({"messages": []}, ""),
        ({"messages": "x"}, ""),
        ({}, ""),
        ([], ""),
    ],
)
def test_what_a_text_goes_on_from(asked: object, said: str) -> None:
    assert prompt_of(json.dumps(asked).encode()) == said and prompt_of(b"{") == ""
