"""The bench's data: Criteo's shape, Zipf ids, a label that can be learnt; written once to Parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DENSE, TABLES = 13, 26
ROWS_PER_TABLE = 100_000
DIM = 16
BATCH = 4096
ROWS = 120 * BATCH
"""Of which the first 90 % are trained on: 108 whole batches, so that both sides cut the same ones."""
TRAIN_ROWS = ROWS * 9 // 10


def write(folder: Path, *, seed: int = 0, group: int = 65_536) -> Path:
    """`ROWS` rows of 13 numbers, 26 ids (Zipf, exponent 1.2), a time and a label, in row groups of `group` rows.

    Returns the file.
    """
    path = folder / f"criteo-shaped-{ROWS}-{group}.parquet"
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    logit = np.full(ROWS, -1.2)
    columns: dict[str, pa.Array] = {}
    for i in range(DENSE):
        values = rng.standard_normal(ROWS)
        logit += 0.1 * values
        columns[f"d{i}"] = pa.array(values)
    for i in range(TABLES):
        ids = (rng.zipf(1.2, ROWS) - 1) % ROWS_PER_TABLE
        logit += 0.2 * rng.standard_normal(ROWS_PER_TABLE)[ids]
        columns[f"c{i}"] = pa.array(ids.astype(np.int64))
    columns["time"] = pa.array(np.arange(ROWS, dtype=np.int64))
    columns["label"] = pa.array((rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.float64))
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), beside, row_group_size=group)
    beside.rename(path)
    return path
