"""A ranking export behind HTTP.

    POST /predict  {"rows": [{...}, ...]}  ->  {"predictions": [0.73, ...]}, of several labels [[0.73, 0.21], ...]
    GET  /schema                           ->  JSON Schema of a row
    GET  /openapi.json                     ->  OpenAPI of this very export
    GET  /healthz                          ->  {"status": "ok", ...}

Rows of concurrent requests are joined into one batch and scored in one forward pass.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from fastapi import HTTPException
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ray import serve as ray_serve

from rtrain.errors import DataError, one_line
from rtrain.export.artifact import Prediction, Predictor, Tables
from rtrain.export.fastest import fastest
from rtrain.serving.answers import MAX_ROWS, REFUSALS, UNANSWERED, Headers, Relays, first_few, new_api
from rtrain.serving.renewed import Renewed
from rtrain.serving.scale import device_of_replica
from rtrain.serving.shards import Elsewhere


class Rows(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")
    rows: list[dict[str, Any]] = Field(description="feature -> value of each row; GET /schema says which")


class Predictions(BaseModel):
    """The answer, in the order of the rows."""

    predictions: list[float] | list[list[float]] = Field(description="of label 1; of several labels a list each")


api = new_api()


def _rows_of(requests: list[list[dict[str, Any]]]) -> int:
    """What bounds a batch: its rows. Counted by requests, 64 of them could bring 640,000."""
    return sum(len(rows) for rows in requests)


@ray_serve.deployment(name="Ranker")
@ray_serve.ingress(api)
class Ranker(Relays, Renewed):
    """One replica: an export in memory."""

    broken = ""

    def __init__(self, export: str, modules: Sequence[str] = (), tables: Tables = "device", shards: Sequence[Any] = ()):
        """`modules`: outside rtrain, that the export's config names; whoever deploys it has imported them.

        `shards`: deployments that have the tables; none: the replica has them.
        """
        torch.set_num_threads(1)
        for module in modules:
            import_module(module)
        device = device_of_replica()
        self.predictor = Predictor(export, device=device, tables="host" if shards else tables)
        stated = self.predictor.head.get("program", {}).get("kind", "eager")
        if device != "cpu" and stated != "eager" and not self.predictor.on_host:
            fastest(export, self.predictor)
        self.elsewhere = Elsewhere(shards) if shards else None
        self.rows: TypeAdapter[Any] = TypeAdapter(list[self.predictor.rows])  # type: ignore[name-defined]

    @api.post("/predict", response_model=Predictions, responses=REFUSALS | UNANSWERED)
    async def predict(self, body: Rows) -> dict[str, Any]:
        """Probability of label 1, or the number, for each row; 422 names the row and key that do not fit."""
        if len(body.rows) > MAX_ROWS:
            raise HTTPException(422, f"rows: {len(body.rows)} in one request; at most {MAX_ROWS}")
        try:
            rows = [row.model_dump() for row in self.rows.validate_python(body.rows)]
            predictions = await self.score(rows) if rows else []
        except ValidationError as error:
            problems = [f"rows.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
            raise HTTPException(422, first_few(problems)) from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        broken = [row for row, found in enumerate(predictions) if not np.isfinite(found).all()]
        if broken:
            raise HTTPException(422, f"rows.{broken[0]}: the model gives no number for such values")
        return {"predictions": predictions}

    async def scores(
        self, method: str, path: str, query: bytes, body: bytes, headers: Headers = ()
    ) -> list[dict[Any, float]]:
        """See `Relays`: of each row the first label's."""
        try:
            found = (await self.predict(Rows.model_validate_json(body)))["predictions"]
        except (HTTPException, ValidationError):
            return []
        return [dict(enumerate(of[0] if isinstance(of, list) else of for of in found))]

    @ray_serve.batch(max_batch_size=MAX_ROWS, batch_wait_timeout_s=0.005, batch_size_fn=_rows_of)
    async def score(self, requests: list[list[dict[str, Any]]]) -> list[list[Prediction]]:
        """Score the rows of several requests at once."""
        joined = [row for rows in requests for row in rows]
        try:
            flat = iter(await self._predicted(joined))
        except torch.AcceleratorError as error:
            self.broken = one_line(error)
            raise
        return [[next(flat) for _ in rows] for rows in requests]

    async def _predicted(self, rows: list[dict[str, Any]]) -> list[Prediction]:
        if self.elsewhere is None:
            return self.predictor.predict(rows)
        wanted = self.predictor.lookup.needed(self.predictor.asks(rows))
        found = await self.elsewhere.rows(wanted.rows)
        return self.predictor.answers(self.predictor.of_rows(wanted, found))

    @api.get("/schema")
    async def schema(self) -> dict[str, Any]:
        """JSON Schema of a row."""
        return self.predictor.rows.model_json_schema()

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(self) -> dict[str, Any]:
        """FastAPI's, with the keys and values that a row of this export has."""
        found = get_openapi(title=api.title, version=api.version, routes=api.routes)
        rows = found["components"]["schemas"]["Rows"]["properties"]["rows"]
        rows |= {"items": self.predictor.rows.model_json_schema(), "maxItems": MAX_ROWS}
        return found

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """Which model answers."""
        head, labels = self.predictor.head, [label.name for label in self.predictor.schema.labels]
        return {"status": "ok", "run": head["run"], "step": head["step"], "labels": labels}
