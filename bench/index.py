"""The best 10 of many items, all compared or by an index, one thread; prints JSON: python -m bench.index

Vectors are trained: a matrix factorisation of 20,000 items on interactions that are drawn here (groups of 500 items,
users who like four groups, popularity by a power law, 34 of each item on average). To train a million takes hours, so
that they are scaled up: each trained item stands for 50, which lie on the way to one of its ten nearest, none further
than half of it. Users' vectors are the trained ones, 1,024 of those that are tested. Milliseconds are of CPU.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import rtrain
from bench.asked import parser
from rtrain import MF, AdamW, ByTime, Duration, Encoders, Evaluation, Handoff, HitRate, InBatchSoftmax, Negatives, Run
from rtrain.data.columns import Lists
from rtrain.data.retrieval import Pairs
from rtrain.export.index import INDEX, Index, Vectors, find, measured, recalls, write_index
from rtrain.metrics.catalogue import rank_catalogue
from rtrain.optim import RowWiseAdagrad

TRAINED, USERS, GROUP, LIKED, EACH, TESTED, NEAR, K = 20_000, 2_000, 500, 4, 8, 1024, 10, 10
QUERIES = 100
"""Whose time is taken."""


def trained(folder: Path) -> tuple[Vectors, Vectors, float]:
    """Items' and users' vectors, and the hit rate at 10."""
    draw = np.random.default_rng(0)
    groups = TRAINED // GROUP
    item = np.repeat(np.arange(TRAINED), np.minimum(EACH * (1 + draw.pareto(1.2, TRAINED)), 2000).astype(np.int64))
    per_group = USERS * LIKED // groups
    likes = draw.permuted(np.arange(groups * per_group) % USERS).reshape(groups, per_group)
    user = likes[item % groups, draw.integers(0, per_group, len(item))]
    moments = draw.permutation(len(item))
    pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": moments}), folder / "rows.parquet")
    data = Pairs(
        source=f"{folder}/rows.parquet", users=USERS, items=TRAINED, negatives=Negatives(count=0), leakage="allow",
        split=ByTime(valid=0.01, test=0.01),
    )  # fmt: skip
    run = Run(
        name="index", storage=str(folder), model=MF(dim=64, objective=InBatchSoftmax()), data=data,
        optim=AdamW(lr=1e-3), sparse_optim=RowWiseAdagrad(lr=0.1), global_batch=1024, duration=Duration(epochs=2),
        evaluation=Evaluation(monitor=f"hit_rate@{K}"), metrics=(HitRate(k=K),), handoff=Handoff(index_from=None),
    )  # fmt: skip
    result = rtrain.train(run, launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    encoders = Encoders(result.export)
    return encoders.vectors.numpy(), encoders.user(list(range(TESTED))), result.metrics[f"hit_rate@{K}"]


def scaled(vectors: Vectors, items: int) -> Vectors:
    draw = np.random.default_rng(1)
    near = rank_catalogue(torch.from_numpy(vectors), torch.from_numpy(vectors), k=NEAR).items_UK.numpy()
    each = -(-items // len(vectors))
    made = [vectors]
    for _ in range(each - 1):
        to = vectors[near[np.arange(len(near)), draw.integers(0, NEAR, len(near))]]
        made.append((vectors + draw.uniform(0, 0.5, (len(vectors), 1)) * (to - vectors)).astype(np.float32))
    return np.concatenate(made)[:items]


def cpu_ms(ask: Callable[[int], Any]) -> float:
    """Of one query, the median of groups of ten."""
    ask(0)
    taken = []
    for start in range(0, QUERIES, 10):
        began = time.process_time()
        for n in range(start, start + 10):
            ask(n)
        taken.append((time.process_time() - began) * 100)
    return float(np.median(taken))


def main() -> None:
    asking = parser("bench.index", __doc__)
    asking.add_argument("--items", type=int, nargs="+", default=[20_000, 100_000, 1_000_000], help="how many")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        own, users, hit_rate = trained(Path(name))
        print(json.dumps({"trained": len(own), f"hit_rate@{K}": hit_rate}), flush=True)
        queries = torch.from_numpy(users)
        nothing = np.zeros(0, np.int64)
        one, all_of_them = (Lists.of(nothing, np.zeros(n, np.int64)) for n in (1, len(users)))
        for items in asked.items:
            vectors = torch.from_numpy(scaled(own, items))
            began = time.process_time()
            length = write_index(vectors.numpy(), Path(name) / INDEX)
            built = time.process_time() - began
            index = Index(Path(name) / INDEX, length)
            stated = measured(index, queries, vectors, all_of_them)
            of: dict[str, Any] = {
                "items": items,
                "build_cpu_s": built,
                "measure_cpu_s": time.process_time() - began - built,
            }
            of["exact_ms"] = cpu_ms(lambda n, v=vectors: rank_catalogue(queries[n : n + 1], v, k=K))
            if stated is not None:
                found = find(index, stated.depths, queries, vectors, all_of_them, K)
                of |= {"recall@10": float(recalls(found, rank_catalogue(queries, vectors, k=K)).mean())}
                of |= {
                    "index_ms": cpu_ms(
                        lambda n, i=index, s=stated, v=vectors: find(i, s.depths, queries[n : n + 1], v, one, K)
                    )
                }
            print(json.dumps(of | {"stated": stated and stated.to_json()}), flush=True)


if __name__ == "__main__":
    main()
