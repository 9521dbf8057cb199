"""Two stages behind HTTP, asked as a retrieval export is.

    POST /recommend  {"whom": [...], "k": 10}     ->  {"items": [[...], ...], "scores": [[...], ...], ...}
    GET  /recommend?user=196&k=10                 ->  the same of one user, of a model that knows users by name
    GET  /schema                                  ->  JSON Schema of the body
    GET  /openapi.json                            ->  OpenAPI of these very models
    GET  /healthz                                 ->  {"status": "ok", ...}

`whom`, `times` and `seen`: as `rtrain.serving.retriever`. `context`: of each who asks, columns of the ranking model
that the request says. `users`: whose histories they are, for what is known of users. Scores are the ranking model's.
"""

import asyncio
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs

import torch
from fastapi import HTTPException, Query
from pydantic import Field, ValidationError
from ray import serve as ray_serve

from rtrain.errors import DataError
from rtrain.export.popular import Unknown
from rtrain.serving.answers import REFUSALS, UNANSWERED, Headers, Relays, new_api
from rtrain.serving.bodies import RETRY_S
from rtrain.serving.retriever import MAX_K, ONE_USER, Found, Name, Question, of_one, one_user, openapi_of, schema_of
from rtrain.stages.config import TwoStages
from rtrain.stages.recommender import Answer, Recommender, Wanted

SCORED = 4
"""Who of a question is looked at by `scores`: each is as many rows as there are candidates."""
MAX_ASKING = 64
"""Who may ask in one request, and is answered in one pass: each is as many rows as there are candidates."""

api = new_api()


class Asking(Question):
    """The body of a request."""

    context: list[dict[str, Any]] | None = Field(None, description="of each, columns of the ranking model")
    users: list[Name] | None = Field(None, description="whose histories they are")


class Ordered(Found):
    """The answer, in the order of those who ask; fewer than k where the filters leave no more."""

    without: list[str] = Field(description="user, item: of whom no features came in time, so that defaults were used")


def _first(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Of what is said of each who asks, that of the first ones."""
    return {name: value[:count] if isinstance(value, list) else value for name, value in given.items()}


def _asking(questions: list[Wanted]) -> int:
    return sum(len(one.whom) for one in questions)


@ray_serve.deployment(name="Recommender")
@ray_serve.ingress(api)
class Recommends(Relays):
    """One replica: both models in memory."""

    async def __init__(self, stages: TwoStages, modules: Sequence[str] = ()):  # type: ignore[misc]  # Serve awaits it
        """`modules`: outside rtrain, that the exports' configs name; whoever deploys it has imported them."""
        torch.set_num_threads(1)
        for module in modules:
            import_module(module)
        self.recommender = await asyncio.to_thread(Recommender, stages)
        await self.recommender.start()

    @api.post("/recommend", response_model=Ordered, responses=REFUSALS | UNANSWERED)
    async def recommend(self, body: Asking) -> dict[str, Any]:
        """The best items for each who asks; 422 names what does not fit."""
        if len(body.whom) > MAX_ASKING:
            raise HTTPException(422, f"whom: {len(body.whom)} ask in one request; at most {MAX_ASKING}")
        try:
            wanted = self.recommender.want(
                body.whom, body.k, users=body.users, times=body.times, seen=body.seen, context=body.context,
                unknown=body.unknown,
            )  # fmt: skip
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        found: Answer = await self.find(wanted) if body.whom else Answer()
        if found.problem and found.without:
            raise HTTPException(503, found.problem, headers={"retry-after": str(RETRY_S)})
        if found.problem:
            raise HTTPException(422, found.problem)
        return {
            "items": [[item for item, _ in of] for of in found.lists],
            "scores": [[score for _, score in of] for of in found.lists],
            "without": found.without,
            "unknown": found.unknown,
        }

    @api.get("/recommend", response_model=Ordered, responses=REFUSALS | UNANSWERED, dependencies=[ONE_USER])
    async def recommend_one(
        self, user: str, k: int = Query(10, ge=1, le=MAX_K), unknown: Unknown = "refuse"
    ) -> dict[str, Any]:
        """The best items for one user, by name."""
        name = one_user(self.recommender.encoders, user)
        body = Asking(whom=[name], k=k, times=None, seen=None, context=None, users=None, unknown=unknown)
        return await of_one(self.recommend(body))

    @ray_serve.batch(max_batch_size=MAX_ASKING, batch_wait_timeout_s=0.005, batch_size_fn=_asking)
    async def find(self, questions: list[Wanted]) -> list[Answer]:
        """Answer several requests at once."""
        return await self.recommender.answer(questions)

    async def scores(
        self, method: str, path: str, query: bytes, body: bytes, headers: Headers = ()
    ) -> list[dict[Any, float]]:
        """See `Relays`: what the ranking model says of all that is found for each of the first."""
        try:
            if method == "GET":
                users = parse_qs(query.decode()).get("user", [])
                name = one_user(self.recommender.encoders, users[0] if users else "")
                asks = Asking.model_validate({"whom": [name], "unknown": "popular"})
            else:
                asks = Asking.model_validate_json(body)
        except (HTTPException, ValidationError):
            return []
        most = self.recommender.stages.candidates
        given = {name: getattr(asks, name) for name in ("users", "times", "seen", "context", "unknown")}
        try:
            found: Answer = await self.find(self.recommender.want(asks.whom[:SCORED], most, **_first(given, SCORED)))
        except DataError:
            return []
        return [dict(of) for number, of in enumerate(found.lists) if number not in found.unknown]

    def _schema(self) -> dict[str, Any]:
        """The body's, with what these models want of it."""
        found = schema_of(Asking, self.recommender.encoders, MAX_ASKING)
        found["properties"]["k"]["maximum"] = self.recommender.stages.candidates
        return found

    @api.get("/schema")
    async def schema(self) -> dict[str, Any]:
        """JSON Schema of the body."""
        return self._schema()

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(self) -> dict[str, Any]:
        """FastAPI's, with the body that these models want."""
        return openapi_of(api, Asking, self._schema(), self.recommender.encoders)

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """Which models answer, for how many items."""
        first, second = self.recommender.encoders, self.recommender.ranker.head
        told = {"run": second["run"], "step": second["step"], "retriever": first.head["run"]}
        return {"status": "ok", "items": len(first.items), "candidates": self.recommender.stages.candidates} | told
