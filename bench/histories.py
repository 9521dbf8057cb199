"""HSTU, or SASRec, over users of unequal histories as an rtrain recipe: most are short, nearly every batch has one of
200 items (SASRec reads the newest 50).

The lengths are lognormal, about 40 positions in the mean and 27 in the median, cut at `BENCH_LONGEST`; with 128 users a
batch, a fifth of what is padded to the batch's longest row is real.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.asked import nothing_but_help
from rtrain import (
    HSTU,
    MRR,
    Adagrad,
    AdamW,
    Checkpoint,
    Cluster,
    Duration,
    Evaluation,
    Handoff,
    Histories,
    LeaveOneOut,
    Parallel,
    Run,
    SASRec,
    Tracking,
    main,
)

USERS, ITEMS, BATCH, LONGEST = 1280, 5000, 128, 200
SASREC_LENGTH = 50
HELD_OUT = 3
"""Items of a user that are no position of training: those of validation and test, and the last one to predict."""


def write(folder: Path, *, longest: int = LONGEST, seed: int = 0) -> Path:
    """`USERS` users with items (Zipf, exponent 1.2) at rising seconds, as Parquet; returns the file."""
    path = folder / f"histories-{longest}.parquet"
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(27.0), 0.9, USERS).astype(np.int64).clip(1, longest) + HELD_OUT
    count = int(lengths.sum())
    columns = {
        "user_id": np.repeat(np.arange(USERS), lengths),
        "item_id": (rng.zipf(1.2, count) - 1) % ITEMS,
        "timestamp": np.cumsum(rng.lognormal(6.0, 3.0, count).clip(1, 1e7).astype(np.int64)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), beside)
    beside.rename(path)
    return path


def run() -> Run:
    """No evaluation, checkpoint or hand-off within the measured steps."""
    sasrec = os.environ.get("BENCH_MODEL") == "sasrec"
    longest = int(os.environ.get("BENCH_LONGEST", LONGEST))
    return Run(
        name="histories",
        model=SASRec(dim=64, layers=2, heads=2, dropout=0.2) if sasrec else HSTU(dim=64, layers=2),
        data=Histories(
            source=str(write(Path(os.environ["BENCH_STORAGE"]) / "data", longest=longest)),
            users=USERS, items=ITEMS, length=SASREC_LENGTH if sasrec else longest, split=LeaveOneOut(),
        ),
        optim=AdamW(lr=1e-3),
        sparse_optim=Adagrad(lr=0.05),
        global_batch=BATCH,
        duration=Duration(epochs=1000, steps=int(os.environ["BENCH_STEPS"])),
        parallel=Parallel(dense="ddp"),
        evaluation=Evaluation(every=Duration(steps=10**9), batch=BATCH, monitor="mrr@10"),
        checkpoint=Checkpoint(every=Duration(steps=10**9)),
        cluster=Cluster(workers=1),
        tracking=Tracking(to=()),
        handoff=Handoff(export=False),
        metrics=(MRR(k=10),),
        log_every_steps=int(os.environ["BENCH_LOG_EVERY"]),
    )  # fmt: skip


if __name__ == "__main__":
    nothing_but_help("bench.histories", __doc__)
    main(run)
