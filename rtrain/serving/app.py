"""The Ray Serve application of an export.

    POST /predict  {"rows": [{...}, ...]}  ->  {"predictions": [0.73, ...]}, of several labels [[0.73, 0.21], ...]
    GET  /schema                           ->  JSON Schema of a row
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
import torch
from fastapi import Body, FastAPI, HTTPException
from pydantic import TypeAdapter, ValidationError
from ray import serve as ray_serve
from ray.serve.schema import LoggingConfig

from rtrain.errors import ClusterError, DataError
from rtrain.export.artifact import Prediction, Predictor
from rtrain.export.request import json_schema

MAX_ROWS = 10_000
"""Rows that one request may carry."""

api = FastAPI(title="rtrain")


@ray_serve.deployment(name="Ranker")
@ray_serve.ingress(api)
class Ranker:
    """One replica: an export in memory."""

    def __init__(self, export: str):
        torch.set_num_threads(1)
        self.predictor = Predictor(export)
        self.rows: TypeAdapter[Any] = TypeAdapter(list[self.predictor.rows])  # type: ignore[name-defined]

    @api.post("/predict")
    async def predict(self, body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - FastAPI's way
        """Probability of label 1 for each row; 422 names the row and key that do not fit."""
        if set(body) != {"rows"}:
            raise HTTPException(422, f"the body must have the one key 'rows', got {sorted(body)}")
        if isinstance(body["rows"], list) and len(body["rows"]) > MAX_ROWS:
            raise HTTPException(413, f"{len(body['rows'])} rows in one request; at most {MAX_ROWS}")
        try:
            rows = [row.model_dump() for row in self.rows.validate_python(body["rows"])]
            predictions = await self.score(rows)
        except ValidationError as error:
            said = "; ".join(
                f"rows.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5]
            )
            raise HTTPException(422, said) from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        return {"predictions": predictions}

    @ray_serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)
    async def score(self, requests: list[list[dict[str, Any]]]) -> list[list[Prediction]]:
        """Score the rows of several requests at once."""
        joined = [row for rows in requests for row in rows]
        flat = iter(self.predictor.predict(joined))
        return [[next(flat) for _ in rows] for rows in requests]

    @api.get("/schema")
    async def schema(self) -> dict[str, Any]:
        """JSON Schema of a row."""
        return json_schema(self.predictor.schema)

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
    ray_serve.start(http_options={"host": host, "port": port}, logging_config=LoggingConfig(enable_access_log=False))
    app = Ranker.options(  # type: ignore[attr-defined]
        num_replicas=replicas, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256
    ).bind(export)
    ray_serve.run(app, name=name, route_prefix="/")
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
