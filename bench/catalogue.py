"""Every item ranked for each user, three ways; prints users/s as JSON: python -m bench.catalogue ours|loop|bare

10,000 users, 100,000 items, vectors of 64 numbers, the best 10, 50 seen items of each user left out (not by `bare`,
which is the floor: a matrix product and a top-k, in blocks of the same size).
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rtrain.metrics.catalogue import BLOCK_SCORES, Seen, rank_catalogue

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


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": ours, "loop": loop, "bare": bare}


def main() -> None:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, DIM, generator=random) for n in (USERS, ITEMS))
    seen = torch.randint(0, ITEMS, (USERS, SEEN), generator=random)
    way = WAYS[sys.argv[1]]
    way(users[:200], items, seen[:200])
    began = time.perf_counter()
    found = way(users, items, seen)
    seconds = time.perf_counter() - began
    print(json.dumps({"users_per_s": USERS / seconds, "sum": int(found.sum())}), flush=True)


if __name__ == "__main__":
    main()
