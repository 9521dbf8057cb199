"""Programs of an export: torch's modules, ONNX Runtime and what AOTInductor compiles; JSON: python -m bench.programs

Models of bench.job's data (26 tables of 100,000 x 16, 13 numbers), trained for a few steps and exported; one thread.

model     milliseconds of lookups and dense part of encoded rows, by each program
predict   a whole `Predictor.predict` of one row, a dict
floor     of that the parts: rows to a table, encoding and batch, ids as the program takes them, the program, the link

Each pair runs all sides, another one first from pair to pair; a side's figure is the median of its calls. Medians of
the pairs, with the least and greatest, and of eager's milliseconds by the side's.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
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
from rtrain.export.flat import Flat, Requests
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


def pairs(count: int, sides: Mapping[str, list[Callable[[], Any]]]) -> dict[str, Any]:
    """Of each side the median of the pairs' medians, and of eager's ratio to it, with least and greatest."""
    for calls in sides.values():
        calls[0]()
    found: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for number in range(count):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            found[name].append(median_ms(sides[name]))
    told: dict[str, Any] = {f"{name}_ms": spread(of) for name, of in found.items()} | {"pairs_ms": found}
    eager = next(iter(found))
    others = [name for name in found if name != eager]
    return told | {
        f"{eager}/{name}": spread([e / o for e, o in zip(found[eager], found[name], strict=True)]) for name in others
    }


def spread(of: list[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(x, 4) for x in (statistics.median(of), min(of), max(of))]


@torch.inference_mode()
def floor_of(predictor: Predictor, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of the parts of `predict` of one row, one after the other as there."""
    asked, model, requests = predictor.asked, predictor.model, Requests(predictor.asked.arrow(label=False))
    made_flat = Flat(asked)

    def encoded(table: pa.Table) -> Batch:
        columns = encode(table, asked, label=False, where="bench", first_row=0, fits=requests.wanted)
        return columns.batch(global_rows=columns.rows)

    flat = list(map(made_flat, rows))
    tables = [requests.table([row]) for row in flat]
    batches = [encoded(table) for table in tables]
    given = [predictor.given(batch) for batch in batches]
    program = predictor.program
    assert program is not None
    outputs = [program(one) for one in given]
    parts: dict[str, list[Callable[[], Any]]] = {
        "flat": [lambda row=row: made_flat(row) for row in rows],
        "table": [lambda row=row: requests.table([row]) for row in flat],
        "encode and batch": [lambda t=t: encoded(t) for t in tables],
        "ids": [lambda b=b: predictor.given(b) for b in batches],
        "lookups and dense part": [lambda g=g: program(g) for g in given],
        "link": [lambda x=x: model.objective.link(x).tolist() for x in outputs],
    }
    return {name: round(median_ms(calls), 4) for name, calls in parts.items()}


@torch.inference_mode()
def of_model(sides: Mapping[str, Predictor], count: int, whole: Collection[int]) -> dict[str, Any]:
    """`sides`: the first one is what others are compared with; `whole`: sizes of which `predict` is taken, too."""
    draw, found = random.Random(0), dict[str, Any]()
    some = next(iter(sides.values()))
    wanted = some.asked.arrow(label=False)
    for size, calls in CALLS.items():
        rows = [[row_of(draw) for _ in range(size)] for _ in range(calls)]
        tables = [pa.Table.from_pylist(one, schema=wanted) for one in rows]
        batches = [some.batch(table, where="bench", first_row=0) for table in tables]
        found[f"model, {size}"] = pairs(
            count, {name: [lambda p=p, b=b: p.computed(b) for b in batches] for name, p in sides.items()}
        )
        if size in whole:
            found[f"predict, {size}"] = pairs(
                count, {name: [lambda p=p, r=r: p.predict(r) for r in rows] for name, p in sides.items()}
            )
    return found


def on_cpu(export: str) -> dict[str, Predictor]:
    """Every program of an export whose head states ONNX."""
    return {
        "eager": Predictor(export, program="eager"),
        "onnx": Predictor(export),
        "compiled": Predictor(export, program="compiled"),
    }


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
                sides = on_cpu(exported(folder, model))
                found = of_model(sides, asked.pairs, whole=(1,))
                draw = random.Random(1)
                rows = [row_of(draw) for _ in range(CALLS[1])]
                floors = {name: floor_of(side, rows) for name, side in sides.items() if side.program is not None}
                print(json.dumps({model: found | {"floor": floors}}), flush=True)


if __name__ == "__main__":
    main()
