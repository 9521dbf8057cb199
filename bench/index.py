"""The best 10 of many items, all compared or by an index, one thread; prints JSON: python -m bench.index

Vectors are trained: a matrix factorisation of 20,000 items on interactions that are drawn here (groups of 500 items,
users who like four groups, popularity by a power law, 34 of each item on average). To train a million takes long, so
that they are scaled up: each trained item stands for 50, which lie on the way to one of the ten nearest by direction,
none further than half of it. `--trained 1000000` trains them all, on 13 of each on average. 1,024 users ask, by their
trained vectors. Milliseconds are of CPU: `exact` is what an export without an index does, `bare` a product and a top-k.
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
from rtrain.export.index import INDEX, Index, Vectors, find, measured, write_index
from rtrain.metrics.catalogue import rank_catalogue
from rtrain.optim import RowWiseAdagrad

TRAINED, GROUP, LIKED, TESTED, NEAR, K = 20_000, 500, 4, 1024, 10, 10
EACH, MANY, EACH_OF_MANY = 8, 200_000, 3
"""Interactions that an item has at least, and of more items than `MANY`."""
JUDGED = 4000
"""Rows of a test split of many items, each of which is compared with all of them."""
QUERIES = 100
"""Whose time is taken."""


def trained(folder: Path, items: int) -> tuple[Vectors, Vectors, float]:
    """Items' and users' vectors, and the hit rate at 10."""
    draw = np.random.default_rng(0)
    groups, users = items // GROUP, items // 10
    each = EACH_OF_MANY if items > MANY else EACH
    item = np.repeat(np.arange(items), np.minimum(each * (1 + draw.pareto(1.2, items)), 2000).astype(np.int64))
    per_group = users * LIKED // groups
    likes = draw.permuted(np.arange(groups * per_group) % users).reshape(groups, per_group)
    user = likes[item % groups, draw.integers(0, per_group, len(item))]
    moments = draw.permutation(len(item))
    pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": moments}), folder / "rows.parquet")
    part = 0.01 if items <= MANY else JUDGED / len(item)
    data = Pairs(
        source=f"{folder}/rows.parquet", users=users, items=items, negatives=Negatives(count=0), leakage="allow",
        split=ByTime(valid=part, test=part),
    )  # fmt: skip
    run = Run(
        name="index", storage=str(folder), model=MF(dim=64, objective=InBatchSoftmax()), data=data,
        optim=AdamW(lr=1e-3), sparse_optim=RowWiseAdagrad(lr=0.1), global_batch=1024, duration=Duration(epochs=2),
        evaluation=Evaluation(monitor=f"hit_rate@{K}"), metrics=(HitRate(k=K),), handoff=Handoff(index_from=None),
    )  # fmt: skip
    result = rtrain.train(run, launcher="inline", quiet=items <= MANY)
    assert result is not None and result.export is not None
    encoders = Encoders(result.export)
    return encoders.vectors.numpy(), encoders.user(list(range(TESTED))), result.metrics[f"hit_rate@{K}"]


def scaled(vectors: Vectors, items: int) -> Vectors:
    if items <= len(vectors):  # nothing is made, for which all would be compared with all
        return vectors[:items]
    draw = np.random.default_rng(1)
    directions = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    near = rank_catalogue(directions, directions, k=NEAR + 1).items_UK[:, 1:].numpy()  # the first is the item itself
    each = -(-items // len(vectors))
    made = [vectors]
    for _ in range(each - 1):
        to = vectors[near[np.arange(len(near)), draw.integers(0, NEAR, len(near))]]
        made.append((vectors + draw.uniform(0, 0.5, (len(vectors), 1)) * (to - vectors)).astype(np.float32))
    return np.concatenate(made)[:items]


def in_turn(pairs: int, *sides: Callable[[int], Any]) -> list[list[float]]:
    """Of each side as many medians, the first changing from pair to pair."""
    taken: list[list[float]] = [[] for _ in sides]
    for pair in range(pairs):
        for side in range(len(sides))[:: -1 if pair % 2 else 1]:
            taken[side].append(cpu_ms(sides[side]))
    return taken


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
    asking.add_argument("--trained", type=int, default=TRAINED, help=f"items that are trained (default {TRAINED})")
    asking.add_argument("--pairs", type=int, default=1, help="how often the sides are timed in turn (default 1)")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        own, users, hit_rate = trained(Path(name), asked.trained)
        print(json.dumps({"trained": len(own), f"hit_rate@{K}": hit_rate}), flush=True)
        queries = torch.from_numpy(users)
        for items in asked.items:
            found = of_items(scaled(own, items), queries, Path(name) / INDEX, asked.pairs)
            print(json.dumps(found), flush=True)


def of_items(vectors: Vectors, queries: torch.Tensor, path: Path, pairs: int) -> dict[str, Any]:
    """Milliseconds are medians of `pairs` of them, which `pairs_ms` has one by one."""
    none, mine = (Lists.of(np.zeros(0, np.int64), np.zeros(n, np.int64)) for n in (len(queries), 1))
    offered = torch.from_numpy(vectors)
    began = time.process_time()
    index = Index(path, write_index(vectors, path))
    built = time.process_time()
    stated = measured(index, queries, offered, none)
    of = {"items": len(vectors), "build_cpu_s": built - began, "measure_cpu_s": time.process_time() - built}
    sides: dict[str, Callable[[int], Any]] = {
        "exact": lambda n: rank_catalogue(queries[n : n + 1], offered, k=K),
        "bare": lambda n: (queries[n : n + 1] @ offered.T).topk(K),
    }
    if stated is not None:
        depths = stated.depths
        sides["index"] = lambda n: find(index, depths, queries[n : n + 1], offered, mine, K)
        of |= stated.to_json()
    of["pairs_ms"] = dict(zip(sides, in_turn(pairs, *sides.values()), strict=True))
    return of | {f"{side}_ms": float(np.median(taken)) for side, taken in of["pairs_ms"].items()}


if __name__ == "__main__":
    main()
