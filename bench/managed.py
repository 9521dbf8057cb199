"""Managed ids against hashed ones and a row for each, on raw ids of which few are frequent: 200,000, by Zipf's law.

python -m bench.managed                     test AUC of each, mean of 3 seeds with the spread

Each id has its own effect, which nothing else tells. The last tenth of the rows, by time, is the test.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import rtrain
from bench.asked import nothing_but_help
from rtrain import (
    AUC,
    DLRM,
    AdamW,
    ByTime,
    Cluster,
    Dense,
    Duration,
    Evaluation,
    Handoff,
    Id,
    Interactions,
    Managed,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schema,
)

COUNT, ITEMS, ROWS = 1_000_000, 200_000, 10_001
SEEDS = (0, 1, 2)
KINDS = {
    "managed, 10,001 rows": Id(name="item", rows=ROWS, hashed="numbers", managed=Managed(every=20, decay=1.0)),
    "hashed, 10,001 rows": Id(name="item", rows=ROWS, hashed="numbers"),
    "a row for each, 200,000": Id(name="item", rows=ITEMS),
}


def write(folder: Path, seed: int) -> str:
    """A million rows: an item, a number, and whether it was liked."""
    draw = np.random.default_rng(seed)
    shares = 1 / np.arange(1, ITEMS + 1) ** 1.05
    item = draw.permutation(ITEMS)[draw.choice(ITEMS, COUNT, p=shares / shares.sum())]
    a = draw.normal(size=COUNT)
    logit = draw.normal(size=ITEMS)[item] * 1.5 + 0.5 * a - 0.5
    columns = {"item": item, "a": a, "at": np.arange(COUNT), "label": draw.random(COUNT) < 1 / (1 + np.exp(-logit))}
    path = str(folder / "rows.parquet")
    pq.write_table(pa.table(columns | {"label": columns["label"].astype(np.int8)}), path)
    return path


def auc(source: str, feature: Id, seed: int, storage: str) -> float:
    """Of the test rows, after one epoch in one process."""
    schema = Schema(features=(Dense(name="a"), feature), time="at")
    run = Run(
        name=f"managed-{seed}",
        model=DLRM(dim=8, bottom=(16,), top=(16,), first_order=True),
        data=Interactions(source=source, schema=schema, split=ByTime(valid=0.05, test=0.1)),
        optim=AdamW(lr=2e-3),
        sparse_optim=RowWiseAdagrad(lr=0.2),
        global_batch=1024,
        duration=Duration(epochs=1),
        parallel=Parallel(dense="ddp"),
        evaluation=Evaluation(every=Duration(epochs=1)),
        cluster=Cluster(workers=1),
        handoff=Handoff(export=False),
        metrics=(AUC(),),
        seed=seed,
        storage=storage,
    )
    result = rtrain.train(run, launcher="inline", quiet=True)
    assert result is not None
    return float(result.metrics["auc"])


def main() -> None:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in SEEDS:
        for kind, feature in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                found[kind].append(auc(write(Path(folder), seed), feature, seed, folder))
    for kind, values in found.items():
        print(f"{kind:<24} {statistics.mean(values):.4f}  ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    nothing_but_help("bench.managed", __doc__)
    main()
