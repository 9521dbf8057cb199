"""What answers for all versions of an endpoint: it passes a request on to one of them, and counts what comes back.

Whoever asks is known by the header `x-rtrain-key`, else by the query's `user`, or OpenAI's, and has the same version
each time; who is not known has any. The answer names the version in `x-rtrain-version`. What a candidate does not
answer, or answers with 500 and above, the champion answers.
"""

import asyncio
import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import suppress
from math import isfinite
from typing import Any, cast

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from ray import serve as ray_serve
from ray.serve.exceptions import BackPressureError

from rtrain.endpoint.actor import conductor_of
from rtrain.endpoint.page import page
from rtrain.endpoint.routing import Routing
from rtrain.endpoint.streams import (
    Opened,
    Question,
    asked_of_text,
    broken,
    counted,
    opened,
    prompt_of,
    status_of,
    tokens_of,
)
from rtrain.endpoint.tally import Tally
from rtrain.errors import one_line
from rtrain.serving.answers import KEY_HEADER, VERSION_HEADER, Relayed, Relays, new_api
from rtrain.serving.bodies import PASSED_BYTES, refusal
from rtrain.serving.openai import TEXTS

EXCHANGE_S = 0.5
"""Seconds between two exchanges with the conductor: so long a change takes to be everywhere, and a bad version to be
seen."""
READ = 50
"""Answers of each version whose scores are read between two exchanges; more would cost the router more than passing
them on."""
SHADOWS = 16
"""Questions to a shadow that may be under way at once; further ones are left out."""
COSTS = 2
"""Texts, or questions of rows, between two exchanges that both versions are asked of, one after the other."""
CHAMPION_S = 55.0
"""Seconds for an answer of the champion: less than after which the proxy gives the request up."""
AGAIN_S = 5.0
"""Seconds within which a champion that gave no answer is asked once more."""
BUSY = 429
ROWS = "/predict"
RECOMMEND = "/recommend"
ANSWERS = (ROWS, RECOMMEND, *TEXTS)
"""Paths whose answers are a model's."""
AGAIN = {"retry-after": "1"}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
"""All that a version may be asked by: it says itself which it takes."""
HIDDEN = {"detail": "this endpoint does not show how it is to those who ask it. See rtrain endpoints"}

api = new_api(PASSED_BYTES)


# Above the class: Serve pickles routes where it meets them, with what the module has by then.
def _scores(body: bytes) -> list[float]:
    """What an answer says, as numbers: predictions, or the best item's score for each who asks."""
    found = json.loads(body)
    if "predictions" in found:
        return [p[0] if isinstance(p, list) else p for p in found["predictions"]]
    return [of[0] for of in found.get("scores", []) if of]


def _of_both(new: list[dict[Any, float]], old: list[dict[Any, float]]) -> list[tuple[float, float]]:
    """Two versions' scores of each row, or item, that both say one of."""
    return [(mine[of], its[of]) for mine, its in zip(new, old, strict=True) for of in mine if of in its]


def _refuses(found: Relayed | Opened | None) -> bool:
    """Whether a version says that the client is to mend what it asks; one that is full does not."""
    return found is not None and 400 <= found.status < 500 and found.status != BUSY


def _below(name: str, body: bytes) -> bytes:
    """A version's OpenAPI, with where its paths begin."""
    return json.dumps(json.loads(body) | {"servers": [{"url": f"/{name}"}]}).encode()


@ray_serve.deployment(name="Router", max_ongoing_requests=1000)
@ray_serve.ingress(api)
class Router(Relays):
    """One replica of an endpoint's router."""

    async def __init__(self, name: str, shown: bool):  # type: ignore[misc]  # Serve awaits it
        """`shown`: whether `/-/` tells how the endpoint is."""
        self._name, self._shown, self._conductor = name, shown, conductor_of(name)
        self._handles: dict[str, Any] = {}
        self._tallies: dict[str, Tally] = defaultdict(Tally)
        self._read: dict[str, int] = defaultdict(int)
        self._shadows = self._costs = 0
        self._costing = self._comparing = False
        self._me = secrets.token_hex(4)
        # Not without it: which versions there are, only the conductor knows.
        self._routing: Routing = await asyncio.wait_for(self._conductor.exchange.remote(self._me, 0, {}), 60)
        self._background = {asyncio.create_task(self._exchange())}

    @api.get("/-/endpoint", include_in_schema=False)
    async def told(self) -> Response:
        """Versions, shares, rates and decisions."""
        return JSONResponse(await self._status()) if self._shown else JSONResponse(HIDDEN, 404)

    @api.get("/-/", include_in_schema=False)
    async def page(self) -> Response:
        """The same to look at."""
        return HTMLResponse(page(await self._status())) if self._shown else JSONResponse(HIDDEN, 404)

    @api.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def passed_on(self, path: str, request: Request) -> Response:
        """The answer of the version that the one who asks has."""
        routing, body = self._routing, await request.body()
        streams, user = asked_of_text(path, body)
        body, hides = counted(body) if streams else (body, False)
        key = request.headers.get(KEY_HEADER) or request.query_params.get("user") or user or secrets.token_hex(8)
        question = (request.method, f"/{path}", request.url.query.encode(), body)
        version = routing.chosen(key)
        found, champions = cast(Relayed | Opened | None, None), asyncio.get_running_loop().create_future()
        if version != routing.champion:
            found = await self._asked(version, question, routing.timeout_s, streams, hides)
        elif routing.shadow and self._shadows < SHADOWS and secrets.randbelow(1 << 30) < routing.shadow * (1 << 30):
            self._behind(self._shadowed(routing, question, champions))
        if routing.candidate and question[1] in TEXTS and not self._costing and self._costs < COSTS:
            self._costing, self._costs = True, self._costs + 1
            self._behind(self._costed(routing, prompt_of(body)))
        if routing.candidate and question[1] in (ROWS, RECOMMEND) and not self._comparing and self._costs < COSTS:
            self._comparing, self._costs = True, self._costs + 1
            self._behind(self._compared(routing, question))
        if found is None or found.status >= 400:  # of the champion nothing is there yet
            tried, began = found, time.perf_counter()
            found = await self._asked(routing.champion, question, CHAMPION_S, streams, hides)
            if found is None and time.perf_counter() - began < AGAIN_S:  # of a replica that died; another one may live
                found = await self._asked(routing.champion, question, CHAMPION_S, streams, hides)
            if _refuses(tried) and not self._refuses_alone(version, question, found.status if found else 503):
                found = tried  # it is the client's to mend
            else:
                version = routing.champion
        champions.set_result(found.status if found else 503)
        if found is None:
            return JSONResponse(refusal(f"/{path}", 503, "no version answered. Ask again"), 503, AGAIN)
        headers = {VERSION_HEADER: version.split("-")[-2]}
        if isinstance(found, Opened):
            return StreamingResponse(self._told_on(version, found), found.status, headers, found.head.content_type)
        body = _below(self._name, found.body) if path == "openapi.json" and found.status == 200 else found.body
        return Response(body, found.status, headers | dict(found.more), found.content_type)

    async def _asked(
        self, version: str, question: Question, most_s: float, streams: bool = False, hides: bool = False
    ) -> Relayed | Opened | None:
        """A version's answer, counted; none where there is none in time. Of one that streams as soon as it begins,
        counted when it is over."""
        began, found = time.perf_counter(), cast(Relayed | Opened | None, None)
        with suppress(Exception):  # a replica that died, one that is full, an error of Ray's own: all are no answer
            handle = self._handle(version)
            asked = opened(handle, question, hides) if streams else handle.relay.remote(*question)
            try:
                found = await asyncio.wait_for(asked, most_s)
            except BackPressureError:
                full = json.dumps(refusal(question[1], BUSY, "as many wait as may. Ask again")).encode()
                found = Relayed(BUSY, "application/json", full, 0, "", more=tuple(AGAIN.items()))
        if isinstance(found, Opened):
            return found
        tally, seconds = self._tallies[version], time.perf_counter() - began
        written = tokens_of(found) if found and found.status == 200 and question[1] in TEXTS else 0
        if question[1] in ANSWERS or found is None:  # schema and health say nothing of the model
            tally.count(status_of(found) if found else 504, seconds / max(1, written))
        if found and found.replica:
            tally.holds(found.replica, found.memory)
            if found.status == 200 and self._read[version] < READ:
                self._read[version] += 1
                tally.said([float(written)] if written else _scores(found.body))
        return found

    async def _told_on(self, version: str, found: Opened) -> AsyncGenerator[bytes, None]:
        """The parts of an answer as they come, counted at their end."""
        try:
            async for part in found.parts():
                yield part
        except Exception as error:  # of a replica that died: what is out cannot be taken back, so it is said
            found.status = 504
            yield broken(error)
        finally:
            tally = self._tallies[version]
            tally.count(found.status, found.seconds / max(1, found.tokens or found.events))
            tally.holds(found.head.replica, found.head.memory)
            if found.status == 200 and found.tokens:  # not of one that was left before its end
                tally.said([float(found.tokens)])

    def _refuses_alone(self, version: str, question: Question, champions: int) -> bool:
        """Whether the champion answers what a version refuses: then that is as if it had failed."""
        alone = champions < 400
        if alone and question[1] in ANSWERS:
            self._tallies[version].refuses_alone()
        return alone

    async def _shadowed(self, routing: Routing, question: Question, champions: "asyncio.Future[int]") -> None:
        self._shadows += 1
        try:
            if _refuses(await self._asked(routing.candidate, question, routing.timeout_s)):
                with suppress(TimeoutError):  # who asked is gone
                    self._refuses_alone(routing.candidate, question, await asyncio.wait_for(champions, CHAMPION_S))
        finally:
            self._shadows -= 1

    async def _costed(self, routing: Routing, text: str) -> None:
        """By how much more what is asked costs a candidate than the champion: whoever writes nonsense expects none of
        what people write."""
        try:
            with suppress(Exception):  # no answer in time, or of a version of an older rtrain
                asked = (self._handle(app).cost.remote(text) for app in (routing.candidate, routing.champion))
                new, old = await asyncio.wait_for(asyncio.gather(*asked), routing.timeout_s)
                if new is not None and old is not None and isfinite(old):
                    self._tallies[routing.candidate].costs(new - old)
        finally:
            self._costing = False

    async def _compared(self, routing: Routing, question: Question) -> None:
        """What both versions say of the same rows: scores may lie alike and order otherwise.

        Of items that are recommended it is what they say of all candidates: the first of one are the other's last.
        """
        try:
            # No answer in time, one of them refuses, which is counted where it was asked, or is of an older rtrain.
            with suppress(Exception):
                asked = (self._handle(app).scores.remote(*question) for app in (routing.candidate, routing.champion))
                new, old = await asyncio.wait_for(asyncio.gather(*asked), routing.timeout_s)
                self._tallies[routing.candidate].scores_both(_of_both(new, old))
        finally:
            self._comparing = False

    def _handle(self, version: str) -> Any:
        if version not in self._handles:
            self._handles[version] = ray_serve.get_app_handle(version)
        return self._handles[version]

    def _behind(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _exchange(self) -> None:
        """Tell what was counted, and hear what is to be done; the same goes on while the conductor is away."""
        while True:
            told, self._tallies, self._read = self._tallies, defaultdict(Tally), defaultdict(int)
            self._costs = 0
            try:
                heard = self._conductor.exchange.remote(self._me, self._routing.number, dict(told))
                routing = await asyncio.wait_for(heard, 10)
                if routing.number != self._routing.number:
                    self._routing = routing
                    there = (routing.champion, routing.candidate)
                    self._handles = {app: handle for app, handle in self._handles.items() if app in there}
            except Exception:  # it restarts, by Ray; what was counted is told once it is there
                for version, tally in self._tallies.items():
                    told[version].add(tally)
                self._tallies = told
            await asyncio.sleep(EXCHANGE_S)

    async def _status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await asyncio.wait_for(self._conductor.status.remote(), 10)
        except Exception as error:
            return {"endpoint": self._name, "problem": f"its conductor does not answer ({one_line(error)})"}
        return found
