"""Every item ranked for each user, four ways; prints users/s as JSON: python -m bench.catalogue run|ours|loop|bare

10,000 users, 100,000 items, vectors of 64 numbers, the best 10, 50 seen items of each user left out (not by `bare`,
which is the floor: a matrix product and a top-k, in blocks of the same size). `run` is the evaluation of a run, from
its data to its metrics: reading, the model, ranking, merging, NDCG@10.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.asked import parser
from rtrain import (
    MF,
    NDCG,
    Adagrad,
    AdamW,
    Cluster,
    Duration,
    Evaluation,
    Handoff,
    Negatives,
    Pairs,
    Parallel,
    Run,
)
from rtrain.evaluation.columns import Columns
from rtrain.evaluation.scoring import measure, scan
from rtrain.mesh import lay_out
from rtrain.metrics.catalogue import BLOCK_SCORES, Seen, rank_catalogue
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.world import join, leave

USERS, ITEMS, DIM, K, SEEN = 10_000, 100_000, 64, 10, 50


def ours(users: Tensor, items: Tensor, seen: Tensor) -> Tensor:
    flat = Seen(items=seen.flatten(), offsets=torch.arange(len(users) + 1) * SEEN)
    return rank_catalogue(users, items, k=K, seen=flat).items_UK


def loop(users: Tensor, items: Tensor, seen: Tensor) -> Tensor:
    best = []
    for user, of_user in zip(users, seen, strict=True):
        scores = items @ user
        scores[of_user] = -torch.inf
        best.append(scores.topk(K).indices)
    return torch.stack(best)


def bare(users: Tensor, items: Tensor, seen: Tensor) -> Tensor:
    block = BLOCK_SCORES // len(items)
    return torch.cat([(part @ items.T).topk(K).indices for part in users.split(block)])


def through_a_run(folder: Path) -> float:
    """Seconds that the test split of a matrix factorisation takes."""
    draw = np.random.default_rng(0)
    lines = np.column_stack([np.arange(USERS), draw.integers(0, ITEMS, (USERS, SEEN + 2))])
    source = folder / "log.txt"
    np.savetxt(source, lines, fmt="%d")
    data = Pairs(source=str(source), users=USERS, items=ITEMS, time="", negatives=Negatives(count=1))
    run = Run(
        name="catalogue", storage=str(folder), model=MF(dim=DIM), data=data, optim=AdamW(lr=1e-3),
        sparse_optim=Adagrad(lr=0.05), global_batch=4096, duration=Duration(steps=1), parallel=Parallel(dense="ddp"),
        cluster=Cluster(workers=1), handoff=Handoff(export=False), metrics=(NDCG(k=K),),
        evaluation=Evaluation(monitor=f"ndcg@{K}", batch=4096),
    )  # fmt: skip
    world = join(gpu=False, timeout_s=600.0)
    mesh, opened = lay_out(run.parallel, 1), open_data(run)
    replica = Replica(run, mesh, world, stored=None, training=False)
    began = time.perf_counter()
    found = measure(replica, scan(run, opened, "test", mesh, 0), run.metrics, Columns(opened, "test"))
    seconds = time.perf_counter() - began
    assert 0 <= found[f"ndcg@{K}"] < 0.01, "the model has learned nothing"
    leave()
    return seconds


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": ours, "loop": loop, "bare": bare}


def main() -> None:
    asking = parser("bench.catalogue", __doc__)
    asking.add_argument("way", choices=("run", *WAYS), help="how they are ranked")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    if asked.way == "run":
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"users_per_s": USERS / through_a_run(Path(folder))}), flush=True)
        return
    random = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, DIM, generator=random) for n in (USERS, ITEMS))
    seen = torch.randint(0, ITEMS, (USERS, SEEN), generator=random)
    way = WAYS[asked.way]
    way(users[:200], items, seen[:200])
    began = time.perf_counter()
    found = way(users, items, seen)
    seconds = time.perf_counter() - began
    print(json.dumps({"users_per_s": USERS / seconds, "sum": int(found.sum())}), flush=True)


if __name__ == "__main__":
    main()
