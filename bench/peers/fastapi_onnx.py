"""Hand-written: FastAPI and ONNX Runtime in one process, no rtrain, no Ray. Serves POST /predict until it is ended.

python -m bench.peers.fastapi_onnx MODEL.onnx PORT
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, create_model

from bench.asked import parser
from bench.data import DENSE, ROWS_PER_TABLE, TABLES

NUMBERS, IDS = [f"d{i}" for i in range(DENSE)], [f"c{i}" for i in range(TABLES)]


def application(path: str) -> FastAPI:
    """Rows are checked as rtrain checks them: every field, its type, ids within their tables, nothing else."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
    numbers: dict[str, Any] = {name: (float, Field(allow_inf_nan=False)) for name in NUMBERS}
    ids: dict[str, Any] = {name: (int, Field(ge=0, lt=ROWS_PER_TABLE)) for name in IDS}
    row = create_model("Row", __config__=ConfigDict(extra="forbid"), **numbers, **ids)

    class Rows(BaseModel):
        rows: list[row] = Field(min_length=1, max_length=1024)  # type: ignore[valid-type]

    app = FastAPI()

    @app.post("/predict")
    async def predict(asked: Rows) -> dict[str, list[float]]:
        rows: list[Any] = asked.rows
        dense = np.array([[getattr(one, name) for name in NUMBERS] for one in rows], np.float32)
        at = np.array([[getattr(one, name) for name in IDS] for one in rows], np.int64)
        (found,) = session.run(None, {"numbers": dense, "ids": at})
        return {"predictions": found.tolist()}

    return app


def main() -> int:
    asked = parser("bench.peers.fastapi_onnx", __doc__)
    asked.add_argument("model", help="what bench.serve wrote: numbers and ids of some rows to their probabilities")
    asked.add_argument("port", type=int)
    options = asked.parse_args()
    uvicorn.run(application(options.model), host="127.0.0.1", port=options.port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
