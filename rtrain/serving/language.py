"""A language export behind OpenAI's HTTP API.

POST /v1/completions        {"model", "prompt", ...}    -> a completion, or its pieces as server-sent events
POST /v1/chat/completions   {"model", "messages", ...}  -> the same, where the tokenizer has a chat template
GET  /v1/models             -> the one model
GET  /openapi.json          -> OpenAPI of this very model
GET  /healthz               -> {"status": "ok", ...}
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve as ray_serve

from rtrain.errors import DataError
from rtrain.language.engine import Busy, Engine, TooLong, way
from rtrain.language.guard import Guard
from rtrain.language.model import load
from rtrain.language.pieces import Piece
from rtrain.language.sampling import Sampling
from rtrain.serving.answers import Relays, new_api
from rtrain.serving.choices import as_they_come
from rtrain.serving.guarded import given_out, why_refused
from rtrain.serving.openai import (
    CHAT,
    COMPLETIONS,
    Ask,
    Chat,
    Completion,
    Prompt,
    Refused,
    Shape,
    event,
    joined,
    refuse_beyond,
    refused,
    unread,
)
from rtrain.serving.openai_schema import NO_MODEL, RESPONSES, openapi_of
from rtrain.serving.renewed import Renewed
from rtrain.serving.scale import device_of_replica


def _api() -> FastAPI:
    api = new_api()
    api.add_exception_handler(RequestValidationError, unread)  # type: ignore[arg-type]
    api.add_exception_handler(Refused, refused)  # type: ignore[arg-type]
    return api


api = _api()


# What the class calls stands above it: Serve pickles the class, with the names that are known, where it is declared.


def _hand(loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[Piece]", piece: Piece) -> None:
    loop.call_soon_threadsafe(queue.put_nowait, piece)


Pieces = AsyncGenerator[tuple[int, Piece], None]
COSTED, COSTED_LETTERS = 256, 4096
"""Tokens, and letters, of a text whose cost is asked."""


async def _events(pieces: Pieces, shapes: Sequence[Shape]) -> AsyncIterator[bytes]:
    usages = []
    try:
        async with aclosing(pieces):
            for chunk in (chunk for shape in shapes for chunk in shape.begin()):
                yield event(chunk)
            async for number, piece in pieces:
                yield event(shapes[number].chunk(piece))
                if piece.finish:
                    usages.append(shapes[number].usage(piece))
        if shapes[0].asked.wants_usage:
            yield event(shapes[0].usage_chunk(usages))
    except Refused as error:  # its status is out
        yield event({"error": error.body})
    yield b"data: [DONE]\n\n"


async def _from(first: tuple[int, Piece], rest: Pieces) -> Pieces:
    async with aclosing(rest):
        yield first
        async for numbered in rest:
            yield numbered


def name_of(export: str) -> str:
    """What a model is called: its run, whose folder holds the export; of another folder its own name."""
    parts = export.rstrip("/").split("/")
    return parts[-2] if parts[-1] == "export" and len(parts) > 1 else parts[-1]


@ray_serve.deployment(name="Language", max_ongoing_requests=256)
@ray_serve.ingress(api)
class LanguageServer(Relays, Renewed):
    """One replica: a model in memory, and the thread that computes with it."""

    def __init__(
        self,
        export: str,
        *,
        called: str = "",
        guard: Guard | None = None,
        draft: str = "",
        device: str = "",
        **of_engine: Any,
    ):
        torch.set_num_threads(1)
        self.name = called or name_of(export)
        self.guard = guard
        device = device or device_of_replica()
        smaller = load(draft, device=device) if draft else None
        self.engine = Engine(load(export, device=device), draft=smaller, **of_engine)
        self.started = int(time.time())

    def __del__(self) -> None:
        """Serve calls it when the replica stops."""
        if hasattr(self, "engine"):
            self.engine.close()

    @property
    def broken(self) -> str:
        """See `Renewed`."""
        return self.engine.broken

    @api.post(COMPLETIONS, response_model=None, responses=RESPONSES)
    async def completions(self, body: Completion) -> JSONResponse | StreamingResponse:
        """The text that goes on from a prompt."""
        self._check(body)
        text = self.engine.language.text
        return await self._answer(body, [(of, of if isinstance(of, str) else text(of)) for of in body.prompts])

    @api.post(CHAT, response_model=None, responses=RESPONSES)
    async def chat(self, body: Chat) -> JSONResponse | StreamingResponse:
        """The next turn of a conversation."""
        self._check(body)
        messages = [message.model_dump() for message in body.messages]
        try:
            prompt = self.engine.language.chat(messages)
        except DataError as error:
            raise Refused(400, str(error), code=None if self.engine.language.has_chat else "no_chat_template") from None
        return await self._answer(body, [(prompt, "\n".join(message["content"] for message in messages))])

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """The one that answers."""
        return {"object": "list", "data": [self._model()]}

    @api.get("/v1/models/{name}", responses=NO_MODEL)
    async def model(self, name: str) -> dict[str, Any]:
        """The one that answers, by its name."""
        self._check_name(name)
        return self._model()

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(self) -> dict[str, Any]:
        """What may be asked of it."""
        return openapi_of(api, self.name, self.engine.language, guarded=self.guard is not None)

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """Which model answers, and how much is under way."""
        computed, waiting = self.engine.load
        found = {"status": "ok", "model": self.name, "computed": computed, "waiting": waiting}
        return found | {"guessed": self.engine.guessed, "right": self.engine.right}

    async def cost(self, text: str) -> float | None:
        """Nats a token of a text's beginning, for a router that compares versions; none where it has less than two
        tokens, or too many wait. No guard sees it: nothing of it goes out but this number."""
        language = self.engine.language
        ids = await asyncio.to_thread(language.ids, text[:COSTED_LETTERS])
        ids = ids[: min(COSTED, language.context)]
        try:
            async with aclosing(self._pieces(ids, Sampling(max_tokens=0, echo=True, logprobs=0))) as pieces:
                tokens = [token async for piece in pieces for token in piece.tokens]
        except (Refused, DataError):
            return None
        said = [token.logprob for token in tokens if token.logprob is not None]
        return -sum(said) / len(said) if said else None

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "rtrain"}

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise Refused(404, f"model: there is no {name!r} here, but {self.name!r}", code="model_not_found")

    def _check(self, body: Ask) -> None:
        self._check_name(body.model)
        refuse_beyond(getattr(body, "prompt", ""), body.n, self.engine.language.vocab)
        if body.stream_options is not None and not body.stream:
            raise Refused(400, "stream_options: only where stream is true")
        if self.guard and body.wants_logprobs is not None:
            raise Refused(400, "logprobs: not here, since a guard may change the text")

    async def _answer(self, body: Ask, prompts: Sequence[tuple[Prompt, str]]) -> JSONResponse | StreamingResponse:
        """To prompts, each with what a guard is to see of it."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(self._read(body, *of)) for of in prompts]
        except ExceptionGroup as several:  # the first that is refused ends the others
            raise several.exceptions[0] from None
        wanted = [(ids, sampling, nth) for ids, sampling in (of.result() for of in reading) for nth in range(body.n)]
        to_all = body, self.name, self.engine.language
        of_all = uuid.uuid4().hex, int(time.time())
        counted = [0 if nth else len(ids) for ids, _, nth in wanted]
        shapes = [Shape(*to_all, tokens, *of_all, index=index) for index, tokens in enumerate(counted)]
        answers = [partial(self._pieces, ids, sampling.again(nth)) for ids, sampling, nth in wanted]
        if self.guard:
            answers = [partial(self._guarded, answer) for answer in answers]
        coming = as_they_come(answers, self.engine.lanes)
        first = await anext(coming)  # here, where a refusal is still a status of its own
        every = _from(first, coming)
        if body.stream:
            return StreamingResponse(_events(every, shapes), media_type="text/event-stream")
        found: list[list[Piece]] = [[] for _ in shapes]
        async with aclosing(every):
            async for number, piece in every:
                found[number].append(piece)
        return JSONResponse(joined([shape.whole(pieces) for shape, pieces in zip(shapes, found, strict=True)]))

    async def _read(self, body: Ask, prompt: Prompt, said: str) -> tuple[list[int], Sampling]:
        """A prompt's tokens, and what is asked of those that follow; refused, if it can be, before any is computed."""
        if self.guard and (why := await asyncio.to_thread(why_refused, self.guard, said)):
            raise Refused(400, f"prompt: {why}", code="content_filter")
        language = self.engine.language
        if isinstance(prompt, str) and (size := len(prompt.encode())) > language.most_bytes:
            why = f"prompt: {size} bytes, more than any text that fits the context of {language.context} tokens"
            raise Refused(400, why, code="context_length_exceeded")
        ids = prompt if isinstance(prompt, list) else await asyncio.to_thread(language.ids, prompt)
        try:
            sampling = body.sampling(language.context - len(ids))
        except DataError as error:
            raise Refused(422, str(error)) from None
        try:
            self.engine.check(ids, sampling)
        except TooLong as error:
            raise Refused(400, str(error), code="context_length_exceeded") from None
        except DataError as error:
            raise Refused(400, str(error)) from None
        return ids, sampling

    async def _pieces(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """Of one answer, as the model's thread gives them; whoever leaves this ends the sequence."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece]()
        try:
            ticket = self.engine.submit(ids, sampling, lambda piece: _hand(loop, queue, piece))
        except Busy as error:
            raise Refused(429, str(error), kind="rate_limit_error", code="busy") from None
        try:
            while True:
                piece = await queue.get()
                if piece.error:
                    raise Refused(500, piece.error, kind="server_error")
                yield piece
                if piece.finish:
                    return
        finally:
            ticket.cancel()

    async def _guarded(self, answer: Callable[[], AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
        """The whole answer in one piece: what a guard has not seen whole does not go out."""
        assert self.guard is not None
        async with aclosing(answer()) as pieces:
            found = [piece async for piece in pieces]
        text = "".join(piece.text for piece in found)
        given = await asyncio.to_thread(given_out, self.guard, text)
        finish = found[-1].finish if given == text else "content_filter"
        yield Piece(given, finish=finish, computed=found[-1].computed)


def language_application(
    export: str,
    *,
    called: str = "",
    guard: Guard | None = None,
    lanes: int = 8,
    waiting: int = 64,
    together: bool = True,
    draft: str = "",
    guesses: int = 0,
    device: str = "",
    **options: Any,
) -> Any:
    """What serves an intact language export; `options` of its deployment, as `num_replicas`.

    `called`: the model's name for those who ask; by default its run's. `lanes`: answers that a replica computes at
    once. `waiting`: requests that wait for one, beyond which it says 429. `together`: all of them in one forward pass;
    else each by itself. `guesses`: tokens of a greedy answer that are guessed at once, by `draft`, the export of a
    smaller model of the same tokenizer, or else by what the text repeats.

    Raises:
        CheckpointError: there is no intact export.
        ConfigError: transformers is not installed, or nothing can be guessed so.
    """
    # Here, where the error is one line.
    smaller = load(draft, device="cpu") if draft else None
    way(load(export, device="cpu"), lanes, together, smaller, guesses)
    server: Any = LanguageServer
    given = {"called": called, "guard": guard, "lanes": lanes, "waiting": waiting, "device": device}
    given |= {"together": together, "draft": draft, "guesses": guesses}
    return server.options(**options).bind(export, **given)
