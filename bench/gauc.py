"""GAUC of 400,000 groups of some 5 rows, two ways; prints groups/s as JSON: python -m bench.gauc ours|loop"""

import json
import time
from collections.abc import Callable

import numpy as np

from bench.asked import parser
from rtrain.metrics import GAUC
from rtrain.metrics.curves import auc
from rtrain.metrics.state import Scored

GROUPS, ROWS = 400_000, 2_000_000


def ours(scored: Scored) -> float:
    return GAUC().value(GAUC().partial(scored))


def loop(scored: Scored) -> float:
    order = np.argsort(scored.groups, kind="stable")
    logits, labels = scored.logits[order], scored.labels[order]
    starts = np.flatnonzero(np.diff(scored.groups[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    areas = np.array([auc(logits[a:b], labels[a:b]) for a, b in zip(starts, ends, strict=True)])
    both = ~np.isnan(areas)
    return float(np.average(areas[both], weights=(ends - starts)[both]))


WAYS: dict[str, Callable[[Scored], float]] = {"ours": ours, "loop": loop}


def main() -> None:
    asking = parser("bench.gauc", __doc__)
    asking.add_argument("way", choices=WAYS, help="how it is computed")
    asked = asking.parse_args()
    random = np.random.default_rng(0)
    labels = (random.random(ROWS) < 0.3).astype(np.float64)
    scored = Scored(random.normal(size=ROWS), labels, random.integers(0, GROUPS, ROWS))
    began = time.perf_counter()
    found = WAYS[asked.way](scored)
    print(json.dumps({"groups_per_s": GROUPS / (time.perf_counter() - began), "gauc": found}), flush=True)


if __name__ == "__main__":
    main()
