"""OpenAPI of a language model's endpoint: what may be asked of this very model, and what comes of it."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from rtrain.language.model import Language
from rtrain.language.sampling import (
    MOST_BIAS,
    MOST_BIASES,
    MOST_LOGPROBS,
    MOST_PENALTY,
    MOST_STOPS,
    MOST_TEMPERATURE,
    SEEDS,
)  # fmt: skip
from rtrain.serving.openai import CHAT, MOST_PROMPTS, TOKEN_NAME


class Why(BaseModel):
    """Of a refusal."""

    message: str
    type: str
    param: str | None
    code: str | None


class NotAnswered(BaseModel):
    """A refusal, as OpenAI's clients read it."""

    error: Why
    detail: str | None = None


class Answered(BaseModel):
    """An answer that does not stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]


NO_MODEL: dict[int | str, dict[str, Any]] = {404: {"model": NotAnswered, "description": "There is no such model"}}
RESPONSES: dict[int | str, dict[str, Any]] = NO_MODEL | {
    code: {"model": NotAnswered, "description": why}
    for code, why in {
        400: "The body is no JSON, or this model cannot answer it",
        408: "The body was too slow",
        413: "Too many bytes",
        415: "The body says that it is no JSON",
        422: "A key or value that does not fit",
        429: "As many wait as may",
        500: "The model failed",
        503: "Nothing answers",
        504: "No answer in time",
    }.items()
}
RESPONSES[200] = {
    "model": Answered,
    "description": "The answer; where `stream` is true its pieces as server-sent events, and `[DONE]`",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}

_TEXT = {"type": "string", "minLength": 1}
BOUNDS: dict[str, dict[str, Any]] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": MOST_TEMPERATURE},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "frequency_penalty": {"type": "number", "minimum": -MOST_PENALTY, "maximum": MOST_PENALTY},
    "presence_penalty": {"type": "number", "minimum": -MOST_PENALTY, "maximum": MOST_PENALTY},
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": TOKEN_NAME},
        "additionalProperties": {"type": "number", "minimum": -MOST_BIAS, "maximum": MOST_BIAS},
        "maxProperties": MOST_BIASES,
    },
    "seed": {"type": "integer", "minimum": 0, "maximum": SEEDS - 1},
    "n": {"type": "integer", "minimum": 1, "maximum": MOST_PROMPTS},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MOST_STOPS}]},
}
"""What `Sampling` takes, for a schema: it refuses the rest in its own words."""


def openapi_of(api: FastAPI, model: str, language: Language, *, guarded: bool) -> dict[str, Any]:
    """FastAPI's, with this model's name, context and vocabulary; without conversations, where it has no template.

    `guarded`: tokens do not go out, so that nothing is said of how likely they are.
    """
    found = of_one_model(api, model, "Completion", "Chat")
    schemas = found["components"]["schemas"]
    if not language.has_chat:
        del found["paths"][CHAT]
    for name in ("Completion", "Chat"):
        properties = schemas[name]["properties"]
        least = 0 if name == "Completion" else 1  # with `echo`, none
        tokens = {"type": "integer", "minimum": least, "maximum": language.context}
        bounds = BOUNDS | {"max_tokens": tokens, "max_completion_tokens": tokens}
        if name == "Completion":
            bounds["logprobs"] = {"anyOf": []} if guarded else bounds["top_logprobs"]
            _of_vocabulary(properties["prompt"], language.vocab)
        elif guarded:
            bounds["logprobs"] = {"type": "boolean", "enum": [False]}
        for key, of in properties.items():
            if key not in schemas[name]["required"]:
                properties[key] = _or_null(of, bounds.get(key))
    return found


def of_one_model(api: FastAPI, model: str, *bodies: str) -> dict[str, Any]:
    """FastAPI's, whose bodies, by the names of their classes, ask for this model."""
    found = get_openapi(title=api.title, version=api.version, routes=api.routes)
    for name in bodies:
        body = found["components"]["schemas"][name]
        body["properties"]["model"] = {"type": "string", "enum": [model]}
        body["required"] = sorted({"model", *body.get("required", ())})
    return found


def _or_null(of: dict[str, Any], bounds: dict[str, Any] | None) -> dict[str, Any]:
    """A null is what is not said."""
    told = {key: of[key] for key in ("title", "description", "default") if key in of}
    kind = bounds or {key: value for key, value in of.items() if key not in told}
    kinds = kind.get("anyOf", [kind])
    return told | {"anyOf": [*(one for one in kinds if one != {"type": "null"}), {"type": "null"}]}


def _of_vocabulary(of: dict[str, Any], vocab: int) -> None:
    """Tokens, alone and in several prompts."""
    for kind in of["anyOf"]:
        kind |= {"minItems": 1} if kind["type"] == "array" else {"minLength": 1}
        while kind["type"] == "array":
            kind = kind["items"]
        if kind["type"] == "integer":
            kind["exclusiveMaximum"] = vocab
