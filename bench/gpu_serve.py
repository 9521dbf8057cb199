"""Answers of an export on a GPU, by a processor beside it: python -m bench.gpu_serve

A DLRM, a DeepFM and a DCNv2 of bench.job's data (26 tables of 100,000 x 16, 13 numbers), without Ray, one thread.
`eager`: torch's modules; `onnx`: the export's program, on CPU. `predict`: rows as dicts to numbers; `model`: of a batch
that is encoded already, from host memory to outputs in host memory. Milliseconds of a call, medians of the pairs'
medians with the least and greatest; sides alternate, each pair begins with another one. Prints JSON.

Without a GPU the sides of the processor are left alone, which says nothing of GPUs.
"""

import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from bench.asked import parser
from bench.data import write
from bench.programs import CALLS, MODELS, exported, median_ms, row_of
from rtrain.export.artifact import Predictor


@torch.inference_mode()
def of_model(export: str, count: int) -> dict[str, Any]:
    sides = {"cpu eager": Predictor(export, program="eager"), "cpu onnx": Predictor(export)}
    if torch.cuda.is_available():
        sides["gpu eager"] = Predictor(export, device="cuda")
    draw, found = random.Random(0), dict[str, Any]()
    wanted = sides["cpu onnx"].asked.arrow(label=False)
    for size, calls in CALLS.items():
        rows = [[row_of(draw) for _ in range(size)] for _ in range(calls)]
        tables = [pa.Table.from_pylist(some, schema=wanted) for some in rows]
        batches = [sides["cpu onnx"].batch(table, where="bench", first_row=0) for table in tables]
        asked = {
            name: {
                "predict": [lambda p=p, some=some: p.predict(some) for some in rows],
                "model": [lambda p=p, batch=batch: p.computed(batch) for batch in batches],
            }
            for name, p in sides.items()
        }
        for what in ("predict", "model"):
            found[f"{what}, {size}"] = alternated(count, {name: of[what] for name, of in asked.items()})
    return found


def alternated(count: int, sides: dict[str, list[Callable[[], Any]]]) -> dict[str, list[float]]:
    """Side -> median of the pairs, least and greatest."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for calls in sides.values():
        calls[0]()
    for number in range(count):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            taken[name].append(median_ms(sides[name]))
    return {name: [round(x, 4) for x in (statistics.median(of), min(of), max(of))] for name, of in taken.items()}


def main() -> None:
    asking = parser("bench.gpu_serve", __doc__)
    asking.add_argument("--pairs", type=int, default=5, help="of each size (default 5)")
    asking.add_argument("--only", choices=MODELS, help="one model")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"BENCH_DATA": str(write(folder / "data")), "BENCH_STEPS": "20", "BENCH_LOG_EVERY": "10"}
        for model in MODELS:
            if asked.only in (None, model):
                found = of_model(exported(folder, model), asked.pairs)
                print(json.dumps({"model": model, "gpu": device, "ms": found}), flush=True)


if __name__ == "__main__":
    main()
