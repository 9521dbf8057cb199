"""What all served exports share: limits of a request, and every refusal in one line of JSON."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from rtrain.serving.limits import BODY_S, MAX_BYTES, BodyLimits
from rtrain.version import VERSION

MAX_ROWS = 10_000
"""Rows that one request may carry, and that are scored in one forward pass."""


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is not JSON"},
    408: {"model": Refusal, "description": "The body was too slow"},
    413: {"model": Refusal, "description": "Too many rows or bytes"},
    422: {"model": Refusal, "description": "Rows or keys that do not fit"},
}


def new_api() -> FastAPI:
    """Without its own OpenAPI, which is of every export: a replica gives the one of the export that it serves."""
    api = FastAPI(title="rtrain", version=VERSION, openapi_url=None)
    api.add_middleware(BodyLimits, most_bytes=MAX_BYTES, most_s=BODY_S)
    api.add_exception_handler(RequestValidationError, _refused)  # type: ignore[arg-type]
    return api


async def _refused(request: Request, error: RequestValidationError) -> JSONResponse:
    """In one line, as every other refusal."""
    problems = [f"{'.'.join(map(str, e['loc'][1:])) or 'the body'}: {e['msg']}" for e in error.errors()[:5]]
    return JSONResponse({"detail": "; ".join(problems)}, 422)
