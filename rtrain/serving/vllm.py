"""A language export on vLLM: `ray.serve.llm`'s own deployment computes, behind the paths of rtrain's engine.

What is asked and answered is vLLM's OpenAI API, as Ray Serve has it. Here is what rtrain adds: limits of a request,
refusals in one shape, health, and what a router asks its versions.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.ingress import OpenAiIngress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from rtrain.errors import ConfigError, one_line
from rtrain.language.decoding import Decoding
from rtrain.language.guard import Guard
from rtrain.language.model import intact
from rtrain.serving.answers import Relays, new_api
from rtrain.serving.guarded import as_events, given_by, why_refused, words_of
from rtrain.serving.language import COSTED, COSTED_LETTERS, name_of
from rtrain.serving.openai import CHAT, COMPLETIONS, Refused, event, refuse_beyond, refused, unread
from rtrain.serving.openai_schema import NO_MODEL, RESPONSES, of_one_model
from rtrain.serving.scale import Scale
from rtrain.serving.vllm_config import config_of, context_of, vocab_of

How = Callable[..., Awaitable[Response]]
GONE = (EngineDeadError, RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, TimeoutError)
"""What says that an engine ended, or its replica."""
BREAKS_OFF = re.compile(r'^data: (\{"error":.*)$', re.MULTILINE)
HEALTH_S = 10.0
"""Seconds for an engine to say how it is."""


TOO_LONG = "context_length_exceeded"
CODES = {
    "maximum context length": TOO_LONG,
    "maximum model length": TOO_LONG,
    "max_model_len": TOO_LONG,
    "provide a chat template": "no_chat_template",
}
"""Of what vLLM says, by some of its words."""
NAMED = re.compile(r"(.*) \(parameter=([\w.]+)(?:, value=.*)?\)", re.DOTALL)
"""How vLLM ends what it says of one parameter."""


def _refusal(status: int, said: str) -> Refused:
    """In one line, the parameter first."""
    told = NAMED.fullmatch(said.strip())
    param, line = (told[2], told[1]) if told else (None, said)
    code = next((code for words, code in CODES.items() if words in line), None)
    param = "prompt" if code == TOO_LONG and param == "input_text" else param
    line = " ".join((f"{param}: {line}" if param else line).split())
    found = Refused(status, line, kind="invalid_request_error" if status < 500 else "server_error", code=code)
    found.body["param"] = param if status < 500 else None  # not whatever stands before a colon of vLLM's
    return found


def _refusal_of(error: Exception) -> Refused:
    """Of what Ray Serve's ingress, its engine or the way there raised."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, BackPressureError):  # Ray Serve has an answer of its own to it, where it is not raised anew
        return Refused(429, "as many wait as may. Ask again", kind="rate_limit_error", code="busy")
    if isinstance(cause, GONE):
        return _gone(type(cause).__name__)
    status = getattr(cause, "status_code", 400 if isinstance(cause, VLLMClientError) else 500)
    return _refusal(status, str(getattr(cause, "message", cause)) or type(cause).__name__)


async def _not_so(request: Request, error: Exception) -> JSONResponse:
    return await refused(request, _refusal_of(error))


def _gone(what: str) -> Refused:
    return Refused(503, f"vLLM does not answer ({what}). It starts anew by itself: ask again", kind="server_error")


def _told(broken: re.Match[str]) -> str:
    """Of an event by which vLLM says that it breaks off."""
    error = json.loads(broken[1])["error"]
    said = _gone("EngineCore") if "EngineCore" in error["message"] else _refusal(int(error["code"]), error["message"])
    return event({"error": said.body}).decode().strip()


async def _to_its_end(parts: AsyncIterable[str]) -> AsyncIterator[str | bytes]:
    """A stream, which says so where it breaks off: what is out cannot be taken back."""
    try:
        async for part in parts:  # one event, or several
            yield BREAKS_OFF.sub(_told, part)
    except Exception as error:  # of a replica that is gone
        yield event({"error": _refusal_of(error).body})


def _api() -> FastAPI:
    api = new_api()
    for kind, answer in (
        (RequestValidationError, unread), (Refused, refused), (VLLMClientError, _not_so)
    ):  # fmt: skip
        api.add_exception_handler(kind, answer)  # type: ignore[arg-type]
    return api


api = _api()


@ray_serve.deployment(name="Language")
@ray_serve.ingress(api)
class VllmServer(OpenAiIngress, Relays):
    """One replica of what stands before vLLM's."""

    def __init__(self, name: str, context: int, vocab: int, guard: Guard | None, engine: Any):
        super().__init__(llm_deployments={name: engine}, model_cards={name: None})
        self.name, self.context, self.vocab, self.guard = name, context, vocab, guard
        self._engine, self._started = engine, int(time.time())

    @api.post(COMPLETIONS, response_model=None, responses=RESPONSES)
    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """The text that goes on from a prompt."""
        return await self._asked(super().completions, body, request)

    @api.post(CHAT, response_model=None, responses=RESPONSES)
    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        return await self._asked(super().chat, body, request)

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """The one that answers."""
        return {"object": "list", "data": [self._model()]}

    @api.get("/v1/models/{name}", responses=NO_MODEL)
    async def model_data(self, name: str) -> dict[str, Any]:
        """The one that answers, by its name."""
        self._check_name(name)
        return self._model()

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(self) -> dict[str, Any]:
        """What vLLM says that it takes, of this model."""
        return of_one_model(api, self.name, CompletionRequest.__name__, ChatCompletionRequest.__name__)

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """Which model answers, and whether its engine does."""
        try:
            await asyncio.wait_for(self._engine.check_health.remote(), HEALTH_S)
        except Exception as error:
            raise _refusal_of(error) from error
        return {"status": "ok", "model": self.name, "engine": "vllm"}

    async def cost(self, text: str) -> float | None:
        """As `LanguageServer.cost`."""
        body = CompletionRequest(
            model=self.name, prompt=text[:COSTED_LETTERS], max_tokens=0, echo=True, logprobs=0,
            truncate_prompt_tokens=min(COSTED, self.context - 1), truncation_side="right",
        )  # fmt: skip
        try:
            answer = await self._answer(super().completions, body, None)
        except Refused:
            return None
        said = json.loads(bytes(answer.body))["choices"][0]["logprobs"]["token_logprobs"]
        said = [logprob for logprob in said if logprob is not None]
        return -sum(said) / len(said) if said else None

    async def _asked(self, how: How, body: Any, request: Request) -> Response:
        """What is answered, where there is a guard as it gives it out."""
        self._check_name(body.model)
        refuse_beyond(getattr(body, "prompt", None), body.n or 1, self.vocab)
        asked = await request.json()  # as it was parsed already
        try:
            json.dumps(asked, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refused(422, "the body: it has half of a letter, a surrogate without the other") from None
        if self.guard is None:
            return await self._answer(how, body, request)
        for words in words_of(asked, isinstance(body, ChatCompletionRequest)):
            if why := await asyncio.to_thread(why_refused, self.guard, words):
                raise Refused(400, f"prompt: {why}", code="content_filter")
        whole = body.model_copy(update={"stream": False, "stream_options": None})
        answer = json.loads(bytes((await self._answer(how, whole, request)).body))
        given = await asyncio.to_thread(given_by, self.guard, answer)
        if not body.stream:
            return JSONResponse(given)
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        return StreamingResponse(as_events(given, usage), media_type="text/event-stream")

    async def _answer(self, how: How, body: Any, request: Request | None) -> Response:
        """What Ray Serve's ingress answers, with its refusals as rtrain's engine says them."""
        try:
            answer = await how(body, request)
        except HTTPException:
            raise
        except Exception as error:
            raise _refusal_of(error) from error
        if isinstance(answer, StreamingResponse):
            answer.body_iterator = _to_its_end(answer.body_iterator)  # type: ignore[arg-type]  # of texts alone
        return answer

    def _check_name(self, name: str | None) -> None:
        if name != self.name:
            raise Refused(404, f"model: there is no {name!r} here, but {self.name!r}", code="model_not_found")

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._started, "owned_by": "rtrain"}


def vllm_application(export: str, called: str, decoding: Decoding, scale: Scale, first: int = 0, **more: Any) -> Any:
    """What serves an intact language export; `more`: options of its deployments, beside those of its scale.

    Raises:
        CheckpointError: there is no intact export.
        ConfigError: the export lies in no local folder, or vLLM does not take an argument.
    """
    name, path = called or name_of(export), intact(export)
    told = config_of(path, name, decoding, scale, first)
    try:
        config = LLMConfig(**told)
        config.get_engine_config()
    except ValueError as error:
        raise ConfigError(f"Decoding.engine_args: {one_line(error)}") from None
    engine = build_llm_deployment(config, override_serve_options=more)
    server: Any = VllmServer
    options = scale.options(first) | {"ray_actor_options": {"num_cpus": 0.5}} | more
    return server.options(**options).bind(name, context_of(path, decoding), vocab_of(path), decoding.guard, engine)
