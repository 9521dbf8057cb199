"""The Ray Serve application of an export.

    POST /predict  {"rows": [{...}, ...]}  ->  {"predictions": [0.73, ...]}, of several labels [[0.73, 0.21], ...]
    GET  /schema                           ->  JSON Schema of a row
    GET  /openapi.json                     ->  OpenAPI of this very export
    GET  /healthz                          ->  {"status": "ok", ...}

Rows of concurrent requests are joined into one batch and scored in one forward pass.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.schema import LoggingConfig

from rtrain.errors import ClusterError, DataError, RunFailed, one_line
from rtrain.export.artifact import Prediction, Predictor
from rtrain.export.request import json_schema
from rtrain.serving.limits import BODY_S, MAX_BYTES, BodyLimits
from rtrain.version import VERSION

MAX_ROWS = 10_000
"""Rows that one request may carry, and that are scored in one forward pass."""
REQUEST_S = 60.0
"""Seconds after which the proxy gives a request up."""


class Rows(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")
    rows: list[dict[str, Any]] = Field(description="feature -> value of each row; GET /schema says which")


class Predictions(BaseModel):
    """The answer, in the order of the rows."""

    predictions: list[float] | list[list[float]] = Field(description="of label 1; of several labels a list each")


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is not JSON"},
    408: {"model": Refusal, "description": "The body was too slow"},
    413: {"model": Refusal, "description": "Too many rows or bytes"},
    422: {"model": Refusal, "description": "Rows or keys that do not fit"},
}

# Its own OpenAPI is of every export: `Ranker.openapi` gives the one of the export that is served.
api = FastAPI(title="rtrain", version=VERSION, openapi_url=None)
api.add_middleware(BodyLimits, most_bytes=MAX_BYTES, most_s=BODY_S)


@api.exception_handler(RequestValidationError)
async def _refused(request: Request, error: RequestValidationError) -> JSONResponse:
    """In one line, as every other refusal."""
    problems = [f"{'.'.join(map(str, e['loc'][1:])) or 'the body'}: {e['msg']}" for e in error.errors()[:5]]
    return JSONResponse({"detail": "; ".join(problems)}, 422)


def _rows_of(requests: list[list[dict[str, Any]]]) -> int:
    """What bounds a batch: its rows. Counted by requests, 64 of them could bring 640,000."""
    return sum(len(rows) for rows in requests)


@ray_serve.deployment(name="Ranker")
@ray_serve.ingress(api)
class Ranker:
    """One replica: an export in memory."""

    def __init__(self, export: str):
        torch.set_num_threads(1)
        self.predictor = Predictor(export)
        self.rows: TypeAdapter[Any] = TypeAdapter(list[self.predictor.rows])  # type: ignore[name-defined]

    @api.post("/predict", response_model=Predictions, responses=REFUSALS)
    async def predict(self, body: Rows) -> dict[str, Any]:
        """Probability of label 1, or the number, for each row; 422 names the row and key that do not fit."""
        if len(body.rows) > MAX_ROWS:
            raise HTTPException(413, f"{len(body.rows)} rows in one request; at most {MAX_ROWS}")
        try:
            rows = [row.model_dump() for row in self.rows.validate_python(body.rows)]
            predictions = await self.score(rows) if rows else []
        except ValidationError as error:
            problems = "; ".join(
                f"rows.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5]
            )
            raise HTTPException(422, problems) from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        broken = [row for row, found in enumerate(predictions) if not np.isfinite(found).all()]
        if broken:
            raise HTTPException(422, f"rows.{broken[0]}: the model gives no number for such values")
        return {"predictions": predictions}

    @ray_serve.batch(max_batch_size=MAX_ROWS, batch_wait_timeout_s=0.005, batch_size_fn=_rows_of)
    async def score(self, requests: list[list[dict[str, Any]]]) -> list[list[Prediction]]:
        """Score the rows of several requests at once."""
        joined = [row for rows in requests for row in rows]
        flat = iter(self.predictor.predict(joined))
        return [[next(flat) for _ in rows] for rows in requests]

    @api.get("/schema")
    async def schema(self) -> dict[str, Any]:
        """JSON Schema of a row."""
        return json_schema(self.predictor.schema)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(self) -> dict[str, Any]:
        """FastAPI's, with the keys and values that a row of this export has."""
        found = get_openapi(title=api.title, version=api.version, routes=api.routes)
        rows = found["components"]["schemas"]["Rows"]["properties"]["rows"]
        rows |= {"items": json_schema(self.predictor.schema), "maxItems": MAX_ROWS}
        return found

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """Which model answers."""
        head, labels = self.predictor.head, [label.name for label in self.predictor.schema.labels]
        return {"status": "ok", "run": head["run"], "step": head["step"], "labels": labels}


@dataclass(frozen=True)
class Served:
    """A running application."""

    name: str
    url: str
    session: ExitStack
    """Left when the application is stopped: the Ray that was started for it, or nothing."""

    def predict(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> list[Prediction]:
        """Probabilities over HTTP, for one row or several.

        Raises:
            DataError: the server refused the rows (its words).
        """
        body = {"rows": [rows] if isinstance(rows, Mapping) else list(rows)}
        answer = httpx.post(f"{self.url}/predict", json=body, timeout=60)
        if answer.status_code in (413, 422):
            raise DataError(f"{self.url}/predict: {answer.json()['detail']}")
        answer.raise_for_status()
        predictions: list[Prediction] = answer.json()["predictions"]
        return predictions

    def predict_concurrently(self, requests: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Prediction]]:
        """One HTTP request for each of `requests`, all under way at once, so that the server batches them."""

        with ThreadPoolExecutor(max_workers=min(32, len(requests))) as pool:
            return list(pool.map(self.predict, requests))

    def stop(self) -> None:
        """Take the application down, and the Ray that was started for it; a cluster stays."""
        ray_serve.delete(self.name)
        self.session.close()


def deploy(
    export: str,
    *,
    name: str,
    port: int,
    replicas: int = 1,
    host: str = "127.0.0.1",
    session: ExitStack | None = None,
) -> Served:
    """Serve an export on the Ray that is joined, and wait until it answers.

    Raises:
        ClusterError: the port is taken.
        CheckpointError: there is no intact export.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    Predictor(export)  # here, where the error is one line, before any replica starts
    check_port(host, port)
    app = Ranker.options(  # type: ignore[attr-defined]
        num_replicas=replicas, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256
    ).bind(export)
    try:
        ray_serve.start(
            http_options={"host": host, "port": port, "request_timeout_s": REQUEST_S, "keep_alive_timeout_s": 30},
            logging_config=LoggingConfig(enable_access_log=False),
        )
        ray_serve.run(app, name=name, route_prefix="/")
    except (RayError, RuntimeError, TimeoutError) as error:
        raise RunFailed(
            f"serve: Ray Serve did not start on {host}:{port} ({one_line(error)}). The machine may be busy: the same "
            "command tries again; of a run the training is done and kept"
        ) from error
    return Served(name=name, url=f"http://{host}:{port}", session=session or ExitStack())


def check_port(host: str, port: int) -> None:
    """Make sure that Serve can listen there.

    Raises:
        ClusterError: something else listens there.
    """
    if ray_serve.status().proxies:
        return  # Serve runs on this cluster already: the port is its own
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"handoff.port: {port} on {host} cannot be used ({error.strerror}). Stop what listens there, "
                f"or set another with --handoff.port {port + 1}"
            ) from error
