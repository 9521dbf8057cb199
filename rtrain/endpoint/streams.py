"""Texts that a version writes, on their way through a router: part by part where that is asked for, and counted.

What counts as an answer's time is that of a token, since answers are of any length; what counts as its score, whose
drift is watched, are its tokens.
"""

import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from rtrain.errors import briefly
from rtrain.serving.answers import Relayed
from rtrain.serving.openai import TEXTS, Refused, event

STREAM = "text/event-stream"
EVENT, ERROR, BETWEEN = b"data: ", b'data: {"error"', b"\n\n"
USAGE = re.compile(rb'"usage": ?\{')
"""Of an event that says what was computed. No text has it: there its quotes are escaped."""
Question = tuple[str, str, bytes, bytes]
"""Method, path, query and body."""


def asked_of_text(path: str, body: bytes) -> tuple[bool, str]:
    """Whether a text is to come as it is written, and who asks; neither of another question, or of no JSON."""
    if f"/{path}" in TEXTS:
        with suppress(ValueError):
            asked = json.loads(body)
            if isinstance(asked, dict):
                return asked.get("stream") is True, str(asked.get("user") or "")
    return False, ""


def counted(body: bytes) -> tuple[bytes, bool]:
    """A question for a stream, so that it ends with its counts; and whether who asked did not ask for them."""
    with suppress(ValueError):
        asked = json.loads(body)
        options = asked.get("stream_options")
        if options is None or (isinstance(options, dict) and options.get("include_usage") in (None, False)):
            return json.dumps(asked | {"stream_options": (options or {}) | {"include_usage": True}}).encode(), True
    return body, False


def prompt_of(body: bytes) -> str:
    """What a question of `TEXTS` gives to go on from: a prompt, the first of several, or a conversation's last turn.
    Empty: nothing that is text."""
    with suppress(ValueError, TypeError, LookupError, AttributeError):
        asked = json.loads(body)
        found = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
        found = found[0] if isinstance(found, list) else found
        return found if isinstance(found, str) else ""
    return ""


def tokens_of(answer: Relayed) -> int:
    """Of a whole answer those that the model wrote."""
    if answer.content_type.startswith(STREAM):
        said = [found for part in answer.body.split(BETWEEN) if (found := _usage(part))]
        return int(said[-1]["usage"]["completion_tokens"]) if said else answer.body.count(EVENT)
    return int(json.loads(answer.body)["usage"]["completion_tokens"])


def status_of(answer: Relayed) -> int:
    """Of a whole answer; 500 of a stream that says of an error, whose own began well."""
    streamed = answer.content_type.startswith(STREAM)
    return 500 if streamed and ERROR in answer.body else answer.status


def _usage(event: bytes) -> dict[str, Any]:
    """What an event says that has the counts; empty: it has none."""
    if USAGE.search(event):
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(event.removeprefix(EVENT))
            return found
    return {}


class Opened:
    """An answer that has begun, and of which parts are to come."""

    def __init__(self, head: Relayed, asked: Any, began: float, hides: bool = False):
        """`hides`: the counts at its end, which nobody asked for but the router."""
        self.head, self._asked, self._began, self._hides = head, asked, began, hides
        self.status = head.status
        """500 once it has said of an error."""
        self.events, self.seconds = 0, 0.0
        """Events that came, and from the question to the last of them."""
        self.tokens = 0
        """That the model wrote; 0 until its end, which says it."""

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Whole events, once, to their end; who leaves before ends what writes them."""
        left = b""
        try:
            async for part in self._asked:
                whole, between, left = (left + part).rpartition(BETWEEN)
                if between:  # several may come at once, as vLLM's do
                    out = b"".join(self._counted(event) for event in whole.split(BETWEEN))
                    self.seconds = time.perf_counter() - self._began
                    if out:
                        yield out
            if left:
                yield left
        finally:
            self._asked.cancel()

    def _counted(self, event: bytes) -> bytes:
        """What of an event goes out."""
        if event.startswith(ERROR):
            self.status = 500
        if said := _usage(event):
            self.tokens = int(said["usage"]["completion_tokens"])
            if self._hides and not said.get("choices"):
                return b""
        self.events += event.startswith(EVENT)
        return event + BETWEEN


async def opened(handle: Any, question: Question, hides: bool = False) -> Relayed | Opened:
    """A version's answer that streams, as soon as it begins; whole, where it is none after all, as a refusal is."""
    began = time.perf_counter()
    asked = handle.options(stream=True).relay_parts.remote(*question)
    try:
        head: Relayed = await anext(asked)
        if head.content_type.startswith(STREAM):
            return Opened(head, asked, began, hides)
        return head._replace(body=b"".join([part async for part in asked]))
    except BaseException:  # a time-out, too
        asked.cancel()
        raise


def broken(error: Exception) -> bytes:
    """The event that ends a stream whose version is gone."""
    why = f"the version that wrote this is gone ({briefly(error)}). Ask again"
    return event({"error": Refused(503, why, kind="server_error").body})
