"""The bench's data: Criteo's shape, Zipf ids, written once to Parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DENSE, TABLES = 13, 26
ROWS_PER_TABLE = 100_000
DIM = 16
BATCH = 4096


def write(folder: Path, rows: int, *, seed: int = 0) -> Path:
    """`rows` rows of 13 numbers, 26 ids (Zipf, exponent 1.2), a time and a label; returns the file."""
    path = folder / f"criteo-shaped-{rows}.parquet"
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {f"d{i}": pa.array(rng.standard_normal(rows)) for i in range(DENSE)}
    for i in range(TABLES):
        ids = (rng.zipf(1.2, rows) - 1) % ROWS_PER_TABLE
        columns[f"c{i}"] = pa.array(ids.astype(np.int64))
    columns["time"] = pa.array(np.arange(rows, dtype=np.int64))
    columns["label"] = pa.array((rng.random(rows) < 0.25).astype(np.float64))
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), beside, row_group_size=65_536)
    beside.rename(path)
    return path
