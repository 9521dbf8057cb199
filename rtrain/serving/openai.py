"""The shapes of OpenAI's HTTP API: what may be asked, how answers and refusals look."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rtrain.errors import DataError
from rtrain.export.request import Word
from rtrain.language.model import Language
from rtrain.language.pieces import Piece, Token
from rtrain.language.sampling import MOST_LOGPROBS, Sampling
from rtrain.serving.answers import where_of

COMPLETIONS, CHAT = TEXTS = ("/v1/completions", "/v1/chat/completions")
TOKEN_NAME = "^(0|[1-9][0-9]{0,9})$"
"""A token as a key of JSON."""


class Refused(Exception):
    """A request that is not answered; the message begins with the field that is at fault, where one is."""

    def __init__(self, status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None):
        super().__init__(message)
        param, colon, _ = message.partition(":")
        self.status = status
        known = kind == "invalid_request_error" and colon
        self.body = {"message": message, "type": kind, "param": param if known else None, "code": code}


async def refused(request: Request, error: Refused) -> JSONResponse:
    """A refusal as OpenAI's clients read it."""
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse({"error": error.body}, error.status, headers=headers)


async def unread(request: Request, error: RequestValidationError) -> JSONResponse:
    """A body that is no JSON, or whose keys or values do not fit."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return await refused(request, Refused(400, f"the body is not JSON ({first['ctx']['error']})"))
    # Of a union each member complains, and who came furthest is the one that was meant.
    told = max((e for e in error.errors() if e["loc"][:2] == first["loc"][:2]), key=lambda e: len(e["loc"]))
    where = where_of([part for part in told["loc"][1:] if part != "str"])
    return await refused(request, Refused(422, f"{where or 'the body'}: {told['msg']}"))


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Ask(BaseModel):
    """What both kinds of requests have; a key that is not taken is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[Annotated[str, Field(pattern=TOKEN_NAME)], float] = Field(
        {}, description="tokens, and what is added to the logit of each"
    )
    n: int = Field(1, ge=1, description="answers to each prompt")
    seed: int | None = Field(None, description="of the first answer to a prompt; that of each further one is one more")
    stop: Word | list[Word] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Word | None = Field(None, description="who asks: an endpoint gives each the same version again")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        """A null is what is not said, as OpenAI's clients send it of what they do not ask for."""
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_logprobs(self) -> int | None:
        """How many of the likeliest tokens to name; none: no log probabilities."""
        raise NotImplementedError

    @property
    def is_chat(self) -> bool:
        """Whether the answer is a message."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def most_tokens(self, room: int) -> int:
        """Tokens of the answer, where `room` are left in the context."""
        raise NotImplementedError

    def sampling(self, room: int) -> Sampling:
        """What the engine is asked.

        Raises:
            DataError: a value that does not fit.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=self.most_tokens(room),
            temperature=self.temperature,
            top_p=self.top_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            seed=self.seed,
            stop=stop,
            logprobs=self.wants_logprobs,
            echo=self.echoes,
        )


TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
"""A tokenizer's library takes no other; the engine says which of these the model has."""


Prompt = str | list[int]
MOST_PROMPTS = 64
"""In one request: as many as wait for a replica by default."""


def refuse_beyond(prompt: Any, answers: int, vocab: int) -> None:
    """Before a question goes to a model, or to vLLM, which lets pass what ends it.

    `answers`: that are wanted to each prompt.

    Raises:
        Refused: more of them in all than `MOST_PROMPTS`, or a token that the model does not have.
    """
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    if (many := len(prompts) * answers) > MOST_PROMPTS:
        raise Refused(400, f"{'n' if answers > 1 else 'prompt'}: {many} answers in one request; at most {MOST_PROMPTS}")
    beyond = [token for of in prompts if isinstance(of, list) for token in of if not 0 <= token < vocab]
    if beyond:
        raise Refused(400, f"prompt: there is no token {beyond[0]}; the model has {vocab}")


class Completion(Ask):
    """The body of /v1/completions."""

    prompt: Word | list[TokenId] | list[Word] | list[list[TokenId]] = Field(
        description=f"a text, or its tokens, or up to {MOST_PROMPTS} of either, each with a choice of the answer"
    )
    logprobs: int | None = None
    echo: bool = Field(False, description="begin with the prompt; with max_tokens 0 its tokens are scored alone")

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Each of them."""
        given: Any = self.prompt
        alone = isinstance(given, str) or not given or isinstance(given[0], int)
        return [given] if alone else given

    @property
    def wants_logprobs(self) -> int | None:
        """See `Ask`."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """See `Ask`."""
        return self.echo

    @property
    def is_chat(self) -> bool:
        """See `Ask`."""
        return False

    def most_tokens(self, room: int) -> int:
        """See `Ask`."""
        return 16 if self.max_tokens is None else self.max_tokens


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: Word


class Chat(Ask):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)
    max_completion_tokens: int | None = None

    @property
    def wants_logprobs(self) -> int | None:
        """See `Ask`."""
        return self.top_logprobs if self.logprobs else None

    @property
    def is_chat(self) -> bool:
        """See `Ask`."""
        return True

    def most_tokens(self, room: int) -> int:
        """See `Ask`; by default all that there is room for."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise DataError(f"max_tokens: {self.max_tokens}, and max_completion_tokens another. Give one of them")
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return max(1, room) if asked is None else asked


@dataclass
class Shape:
    """How the answer to one request is written."""

    asked: Ask
    model: str
    language: Language
    prompt_tokens: int
    id: str
    created: int
    index: int = 0
    """Of the choice, among those of a request."""
    characters: int = 0
    """Of the text that is written already: where the next token's begins."""

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """All of it at once."""
        text = "".join(piece.text for piece in pieces)
        logprobs = self._logprobs([token for piece in pieces for token in piece.tokens])
        choice: dict[str, Any] = {"index": self.index, "logprobs": logprobs, "finish_reason": pieces[-1].finish}
        choice |= {"message": {"role": "assistant", "content": text}} if self.asked.is_chat else {"text": text}
        return self._head("") | {"choices": [choice], "usage": self.usage(pieces[-1])}

    def begin(self) -> list[dict[str, Any]]:
        """Chunks before the first piece."""
        if not self.asked.is_chat:
            return []
        delta = {"role": "assistant", "content": ""}
        choice = {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return [self._head(".chunk") | {"choices": [choice]}]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One piece of a stream."""
        choice: dict[str, Any] = {"index": self.index, "finish_reason": piece.finish or None}
        choice["logprobs"] = self._logprobs(list(piece.tokens))
        choice |= {"delta": {"content": piece.text}} if self.asked.is_chat else {"text": piece.text}
        return self._head(".chunk") | {"choices": [choice]}

    def usage_chunk(self, usages: Sequence[dict[str, int]]) -> dict[str, Any]:
        """The end of a stream that was asked for its counts: of all its choices."""
        return self._head(".chunk") | {"choices": [], "usage": _summed(usages)}

    def _head(self, suffix: str) -> dict[str, Any]:
        chat = self.asked.is_chat
        kind = f"chat.completion{suffix}" if chat else "text_completion"
        name = f"{'chatcmpl' if chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def usage(self, last: Piece) -> dict[str, int]:
        """Its tokens, by its last piece; the prompt's are counted with the first answer to it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": last.computed,
            "total_tokens": self.prompt_tokens + last.computed,
        }

    def _text(self, token: int) -> str:
        return self.language.text([token])

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self.asked.wants_logprobs is None:
            return None
        if self.asked.is_chat:
            return {"content": [self._of_chat(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self.characters)
            self.characters += len(self._text(token.id))
        likeliest = [
            None if token.logprob is None else {self._text(i): p for i, p in reversed(token.likeliest)}
            for token in tokens
        ]
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": likeliest if self.asked.wants_logprobs else None,
            "text_offset": offsets,
        }

    def _of_chat(self, token: Token) -> dict[str, Any]:
        best = [{"token": self._text(i), "logprob": p, "bytes": None} for i, p in token.likeliest]
        return {"token": self._text(token.id), "logprob": token.logprob, "bytes": None, "top_logprobs": best}


def joined(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several as one, in their order."""
    choices = [choice for of in answers for choice in of["choices"]]
    return answers[0] | {"choices": choices, "usage": _summed([of["usage"] for of in answers])}


def _summed(usages: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(of[key] for of in usages) for key in usages[0]}


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
