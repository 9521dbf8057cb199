"""Programs of an export: torch's modules against ONNX Runtime, one thread, alternating; JSON: python -m bench.programs

Models of bench.job's data (26 tables of 100,000 x 16, 13 numbers), trained for a few steps and exported.

model     milliseconds of lookups and dense part of encoded rows, by either program
predict   a whole `Predictor.predict` of one row, a dict
floor     of that the parts: rows to a table, encoding and batch, ids as the program takes them, the program, the link

Each pair runs both sides, the first one changing from pair to pair; a side's figure is the median of its calls. Medians
of the pairs, with the least and greatest.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import rtrain
from bench.asked import parser
from bench.data import DENSE, DIM, ROWS_PER_TABLE, TABLES, write
from bench.job import SCHEMA, run
from rtrain.batch import Batch
from rtrain.data.encode import encode
from rtrain.export.artifact import Predictor
from rtrain.export.flat import Requests, flat_row
from rtrain.models.ranking import RankingConfig

MODELS: Mapping[str, RankingConfig] = {
    "DLRM": rtrain.DLRM(dim=DIM, bottom=(64,), top=(64, 32)),
    "DeepFM": rtrain.DeepFM(dim=DIM),
    "DCNv2": rtrain.DCNv2(dim=DIM),
}
CALLS = {1: 500, 64: 200, 1024: 30}
"""Rows of a call -> calls of a side in a pair."""


def exported(folder: Path, name: str) -> str:
    """A few steps of the bench's job with a model, and its export, which has a program."""
    handoff = rtrain.Handoff(rows=64, program="onnx")
    job = replace(run(), name=name, model=MODELS[name], storage=f"{folder}/runs", handoff=handoff)
    found = rtrain.train(job, launcher="inline", quiet=True)
    assert found is not None and found.export is not None
    return found.export


def row_of(draw: random.Random) -> dict[str, Any]:
    numbers: dict[str, Any] = {f"d{i}": draw.gauss(0, 1) for i in range(DENSE)}
    return numbers | {f"c{i}": draw.randrange(ROWS_PER_TABLE) for i in range(TABLES)}


def median_ms(calls: list[Callable[[], Any]]) -> float:
    taken = []
    for call in calls:
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def pairs(count: int, eager: list[Callable[[], Any]], onnx: list[Callable[[], Any]]) -> dict[str, Any]:
    """Of each side the median of the pairs' medians, and of their ratio with its least and greatest."""
    sides = (eager, onnx)
    for side in sides:
        side[0]()
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        for side in (1, 0) if number % 2 else (0, 1):
            found[side].append(median_ms(sides[side]))
    ratios = [e / o for e, o in zip(*found, strict=True)]
    return {
        name: [round(x, 4) for x in (statistics.median(of), min(of), max(of))]
        for name, of in (("eager_ms", found[0]), ("onnx_ms", found[1]), ("eager/onnx", ratios))
    }


def floor_of(predictor: Predictor, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of the parts of `predict` of one row, one after the other as there."""
    asked, model, requests = predictor.asked, predictor.model, Requests(predictor.asked.arrow(label=False))

    def encoded(table: pa.Table) -> Batch:
        columns = encode(table, asked, label=False, where="bench", first_row=0, fits=requests.wanted)
        return columns.batch(global_rows=columns.rows)

    flat = [flat_row(row, asked) for row in rows]
    tables = [requests.table([row]) for row in flat]
    batches = [encoded(table) for table in tables]
    given = [predictor.given(batch) for batch in batches]
    assert predictor.program is not None
    program = predictor.program
    outputs = [program(one) for one in given]
    parts: dict[str, list[Callable[[], Any]]] = {
        "flat": [lambda row=row: flat_row(row, asked) for row in rows],
        "table": [lambda row=row: requests.table([row]) for row in flat],
        "encode and batch": [lambda t=t: encoded(t) for t in tables],
        "ids": [lambda b=b: predictor.given(b) for b in batches],
        "lookups and dense part, onnx": [lambda g=g: program(g) for g in given],
        "link": [lambda x=x: model.objective.link(x).tolist() for x in outputs],
    }
    return {name: round(median_ms(calls), 4) for name, calls in parts.items()}


@torch.inference_mode()
def of_model(export: str, count: int) -> dict[str, Any]:
    onnx, eager = Predictor(export), Predictor(export, program="eager")
    assert onnx.program is not None
    program, model = onnx.program, eager.model
    draw, found = random.Random(0), dict[str, Any]()
    wanted = onnx.asked.arrow(label=False)
    for size, calls in CALLS.items():
        tables = (pa.Table.from_pylist([row_of(draw) for _ in range(size)], schema=wanted) for _ in range(calls))
        batches = [onnx.batch(table, where="bench", first_row=0) for table in tables]
        found[f"model, {size}"] = pairs(
            count,
            [lambda b=b: model(b) for b in batches],
            [lambda b=b: program(onnx.given(b)) for b in batches],
        )
    rows = [row_of(draw) for _ in range(CALLS[1])]
    found["predict, 1"] = pairs(
        count, [lambda r=r: eager.predict([r]) for r in rows], [lambda r=r: onnx.predict([r]) for r in rows]
    )
    found["floor"] = floor_of(onnx, rows)
    return found


def main() -> None:
    asking = parser("bench.programs", __doc__)
    asking.add_argument("--pairs", type=int, default=5, help="pairs of each comparison (default 5)")
    asking.add_argument("--only", choices=MODELS, help="one model")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"BENCH_DATA": str(write(folder / "data")), "BENCH_STEPS": "20", "BENCH_LOG_EVERY": "10"}
        assert len(SCHEMA.ids) == TABLES
        for model in MODELS:
            if asked.only in (None, model):
                print(json.dumps({model: of_model(exported(folder, model), asked.pairs)}), flush=True)


if __name__ == "__main__":
    main()
