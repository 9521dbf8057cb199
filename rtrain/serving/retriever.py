"""A retrieval export behind HTTP: the best items of the whole catalogue for who asks.

    POST /recommend  {"whom": [...], "k": 10}     ->  {"items": [[...], ...], "scores": [[...], ...]}, best first
    GET  /recommend?user=196&k=10                 ->  the same of one user, of a model that knows users by name
    GET  /schema                                  ->  JSON Schema of the body
    GET  /openapi.json                            ->  OpenAPI of this very export
    GET  /healthz                                 ->  {"status": "ok", ...}

`whom`: users as the data call them; of a model of histories (SASRec, HSTU) each one's items, oldest first, with `times`
where the model reads them. `seen`: items that each is not to be offered. Concurrent requests are answered in one pass.
"""

from collections.abc import Awaitable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve

from rtrain.errors import DataError
from rtrain.export.encoders import Asked, Encoders
from rtrain.export.popular import Unknown
from rtrain.export.request import Whole, Word
from rtrain.serving.answers import REFUSALS, Relays, new_api, takes

MAX_WHOM = 1000
"""Who may ask in one request, and is answered in one pass."""
MAX_K = 1000

api = new_api()
Name = Whole | Word
"""Of a user or an item, as the data call them."""
STRANGERS = (
    "users, and items of histories, that the data do not have; popular: such items are left out, and such users, and "
    "empty histories, are offered the most frequent items, with the share of all that each was as its score"
)


ONE_USER = takes("user", "k", "unknown")
"""Parameters of one user's question."""


class Question(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    whom: list[Name] | list[list[Name]] = Field(description="users, or each one's items, oldest first")
    k: int = Field(10, ge=1, le=MAX_K, description="how many items")
    times: list[list[int]] | None = Field(None, description="when each item was had, seconds since 1970, rising")
    seen: list[list[Name]] | None = Field(None, description="items that each one is not to be offered")
    unknown: Unknown = Field("refuse", description=STRANGERS)


class Found(BaseModel):
    """The answer, in the order of those who ask; fewer than k where there are no more."""

    items: list[list[Name]]
    scores: list[list[float]]
    unknown: list[int] = Field(description="which of those who ask, from 0, were offered what is popular")


def _asking(questions: list[tuple[Asked, int]]) -> int:
    return sum(len(asked.context.lengths) for asked, _ in questions)


def one_user(encoders: Encoders, user: str) -> Name:
    """Who a query names, as the data do.

    Raises:
        HTTPException: 422.
    """
    if encoders.of_histories:
        raise HTTPException(422, "user: this model knows who asks by the items of a history. POST them as whom")
    whole = not encoders.of_words
    if whole and not (user.removeprefix("-").isdecimal() and user.isascii()):
        raise HTTPException(422, f"user: the data call each user by whole numbers, got {user[:60]!r}")
    return int(user) if whole else user


async def of_one(answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """What the query of one user is refused for is called as the query calls it."""
    try:
        return await answer
    except HTTPException as error:
        field, colon, why = str(error.detail).partition(":")
        if field == "whom":
            error.detail = f"user{colon}{why}"
        raise


def schema_of(body: type[Question], encoders: Encoders, most: int) -> dict[str, Any]:
    """The body's, with what an export wants of it; `most` may ask."""
    found = body.model_json_schema()
    name = {"type": "string" if encoders.of_words else "integer"}
    history = {"type": "array", "items": name}
    whom = {"type": "array", "items": history if encoders.of_histories else name, "maxItems": most}
    found["properties"]["whom"] = whom | {"description": found["properties"]["whom"]["description"]}
    seen = [{"type": "array", "items": history}, {"type": "null"}]
    found["properties"]["seen"] = {**found["properties"]["seen"], "anyOf": seen}
    found["required"] = ["whom", *(["times"] if encoders.timed else [])]
    return found


def openapi_of(api: FastAPI, body: type[Question], schema: dict[str, Any], encoders: Encoders) -> dict[str, Any]:
    """FastAPI's, with the body that an export wants, and what its users are called by."""
    found = get_openapi(title=api.title, version=api.version, routes=api.routes)
    found["components"]["schemas"][body.__name__] = schema
    for parameter in found["paths"]["/recommend"]["get"]["parameters"]:
        if parameter["name"] == "user" and not encoders.of_words:
            parameter["schema"]["type"] = "integer"
        if parameter["name"] == "k":
            parameter["schema"]["maximum"] = schema["properties"]["k"]["maximum"]
    return found


@ray_serve.deployment(name="Retriever")
@ray_serve.ingress(api)
class Retriever(Relays):
    """One replica: an export in memory."""

    def __init__(self, export: str, modules: Sequence[str] = ()):
        """`modules`: outside rtrain, that the export's config names; whoever deploys it has imported them."""
        torch.set_num_threads(1)
        for module in modules:
            import_module(module)
        self.encoders = Encoders(export)

    @api.post("/recommend", response_model=Found, responses=REFUSALS)
    async def recommend(self, body: Question) -> dict[str, Any]:
        """The best items for each who asks; 422 names what does not fit."""
        if len(body.whom) > MAX_WHOM:
            raise HTTPException(422, f"whom: {len(body.whom)} ask in one request; at most {MAX_WHOM}")
        try:
            asked = self.encoders.ask(body.whom, body.times, body.seen, body.unknown)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        found: list[list[tuple[Any, float]]] = await self.find((asked, body.k)) if body.whom else []
        return {
            "items": [[item for item, _ in of] for of in found],
            "scores": [[score for _, score in of] for of in found],
            "unknown": np.flatnonzero(asked.strangers).tolist(),
        }

    @api.get("/recommend", response_model=Found, responses=REFUSALS, dependencies=[ONE_USER])
    async def recommend_one(
        self, user: str, k: int = Query(10, ge=1, le=MAX_K), unknown: Unknown = "refuse"
    ) -> dict[str, Any]:
        """The best items for one user, by name."""
        name = one_user(self.encoders, user)
        body = Question(whom=[name], k=k, times=None, seen=None, unknown=unknown)
        return await of_one(self.recommend(body))

    @ray_serve.batch(max_batch_size=MAX_WHOM, batch_wait_timeout_s=0.005, batch_size_fn=_asking)
    async def find(self, questions: list[tuple[Asked, int]]) -> list[list[list[tuple[Any, float]]]]:
        """Answer several requests at once."""
        found = iter(self.encoders.find(Asked.joined([asked for asked, _ in questions]), max(k for _, k in questions)))
        return [[next(found)[:k] for _ in asked.context.lengths] for asked, k in questions]

    def _schema(self) -> dict[str, Any]:
        """The body's, with what this export wants of it."""
        return schema_of(Question, self.encoders, MAX_WHOM)

    @api.get("/schema")
    async def schema(self) -> dict[str, Any]:
        """JSON Schema of the body."""
        return self._schema()

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(self) -> dict[str, Any]:
        """FastAPI's, with the body that this export wants."""
        return openapi_of(api, Question, self._schema(), self.encoders)

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """Which model answers, for how many items."""
        head = self.encoders.head
        return {"status": "ok", "run": head["run"], "step": head["step"], "items": len(self.encoders.items)}
