"""What reading costs a rank, of rows that do not fit the window; prints JSON: python -m bench.reading [WORLD]

The bench's rows in row groups of 8,192 and a window of 65,536, about a seventh of what is trained on, so that an epoch
reads, decodes and encodes every group anew. Nothing is trained. CPU seconds of an epoch of each rank of a world of that
size, one rank after the other; opening the data is not in them.
"""

import json
import os
import sys
import time
from pathlib import Path

from bench.asked import parser
from bench.data import BATCH, TRAIN_ROWS, write
from bench.job import SCHEMA
from rtrain import ByTime, Interactions

GROUP, WINDOW, EPOCHS = 8_192, 65_536, 4


def seconds(source: str, rank: int, world: int) -> float:
    """CPU seconds of an epoch of one rank."""
    data = Interactions(
        source=source, schema=SCHEMA, split=ByTime(valid=0.05, test=0.05), window_rows=WINDOW, prefetch=0
    ).open()
    reader = data.reader("train", global_batch=BATCH, seed=0, rank=rank, world_size=world)
    began, rows = 0.0, 0
    for batch, cursor in reader:
        rows += batch.rows if began else 0
        if cursor.epoch == 1 and not began:  # the first epoch imports and allocates what the later ones have
            began = time.process_time()
        if cursor.epoch == 1 + EPOCHS:
            break
    took = (time.process_time() - began) / EPOCHS
    reader.close()
    if not rows >= EPOCHS * (TRAIN_ROWS // world - BATCH):
        raise RuntimeError(f"{EPOCHS} epochs of rank {rank} of {world} gave {rows} rows of {TRAIN_ROWS} each")
    return took


def main() -> int:
    """Print the figures."""
    asking = parser("bench.reading", __doc__)
    asking.add_argument("world", nargs="?", type=int, default=1, metavar="WORLD", help="ranks; left out: 1")
    world = asking.parse_args().world
    source = str(write(Path(os.environ["BENCH_STORAGE"]) / "data", group=GROUP))
    took = [seconds(source, rank, world) for rank in range(world)]
    said = {"slowest_s": max(took), "rows_per_s": TRAIN_ROWS / max(took), "step_s": max(took) * BATCH / TRAIN_ROWS}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
