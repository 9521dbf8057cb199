"""Texts that a version writes, on their way through a router: part by part where that is asked for, and counted.

What counts as an answer's time is that of a token, since answers are of any length; what counts as its score, whose
drift is watched, are its tokens.
"""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from rtrain.errors import one_line
from rtrain.serving.answers import Relayed
from rtrain.serving.openai import Refused, event

TEXTS = ("/v1/completions", "/v1/chat/completions")
STREAM = "text/event-stream"
EVENT, ERROR = b"data: ", b'data: {"error"'
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
    """Of a whole answer those that the model wrote; of one that streamed its events."""
    if answer.content_type.startswith(STREAM):
        return answer.body.count(EVENT)
    return int(json.loads(answer.body)["usage"]["completion_tokens"])


def status_of(answer: Relayed) -> int:
    """Of a whole answer; 500 of a stream that says of an error, whose own began well."""
    streamed = answer.content_type.startswith(STREAM)
    return 500 if streamed and ERROR in answer.body else answer.status


class Opened:
    """An answer that has begun, and of which parts are to come."""

    def __init__(self, head: Relayed, asked: Any, began: float):
        self.head, self._asked, self._began = head, asked, began
        self.status = head.status
        """500 once it has said of an error."""
        self.events, self.seconds = 0, 0.0
        """Parts that came, and from the question to the last of them."""

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Once, to their end; who leaves before ends what writes them."""
        try:
            async for part in self._asked:
                self.events += part.startswith(EVENT)
                if part.startswith(ERROR):
                    self.status = 500
                self.seconds = time.perf_counter() - self._began
                yield part
        finally:
            self._asked.cancel()


async def opened(handle: Any, question: Question) -> Relayed | Opened:
    """A version's answer that streams, as soon as it begins; whole, where it is none after all, as a refusal is."""
    began = time.perf_counter()
    asked = handle.options(stream=True).relay_parts.remote(*question)
    try:
        head: Relayed = await anext(asked)
        if head.content_type.startswith(STREAM):
            return Opened(head, asked, began)
        return head._replace(body=b"".join([part async for part in asked]))
    except BaseException:  # a time-out, too
        asked.cancel()
        raise


def broken(error: Exception) -> bytes:
    """The event that ends a stream whose version is gone."""
    why = f"the version that wrote this is gone ({one_line(error)[:200]}). Ask again"
    return event({"error": Refused(503, why, kind="server_error").body})
