"""How fast a shard of a fresh table is filled; prints JSON: python -m bench.first_weights

A million rows of 64 by the normal distribution, 256 MB that have been touched, on one core.
"""

import json
import sys
import time

import torch

from bench.asked import parser
from rtrain.nn.tables import Table, fill

ROWS, DIM, TIMES = 1_000_000, 64, 4


def main() -> int:
    """Print bytes/s of CPU time."""
    parser("bench.first_weights", __doc__).parse_args()
    torch.set_num_threads(1)
    table = Table(name="item", rows=ROWS, dim=DIM, features=("item",), initial="normal")
    shard = torch.zeros(ROWS, DIM)
    began = time.process_time()
    for seed in range(TIMES):
        fill(shard, table, seed, row=0)
    print(json.dumps({"bytes_per_s": TIMES * shard.nbytes / (time.process_time() - began)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
