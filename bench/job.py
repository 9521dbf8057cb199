"""The bench's job as an rtrain recipe: DLRM over 26 tables, two workers, DDP."""

import os

from bench.asked import nothing_but_help
from bench.data import BATCH, DENSE, DIM, ROWS_PER_TABLE, TABLES
from rtrain import (
    AUC,
    DLRM,
    AdamW,
    ByTime,
    Checkpoint,
    Cluster,
    Dense,
    Duration,
    Evaluation,
    Handoff,
    Id,
    Interactions,
    LogLoss,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schema,
    Tracking,
    main,
)

SCHEMA = Schema(
    features=(
        *(Dense(name=f"d{i}") for i in range(DENSE)),
        *(Id(name=f"c{i}", rows=ROWS_PER_TABLE) for i in range(TABLES)),
    ),
    time="time",
)


def run() -> Run:
    """Trains only: no evaluation, checkpoint or hand-off within the measured steps."""
    return Run(
        name="bench",
        model=DLRM(dim=DIM, bottom=(64,), top=(64, 32)),
        data=Interactions(source=os.environ["BENCH_DATA"], schema=SCHEMA, split=ByTime(valid=0.05, test=0.05)),
        optim=AdamW(lr=1e-3),
        sparse_optim=RowWiseAdagrad(lr=2e-2),
        global_batch=BATCH,
        duration=Duration(epochs=100, steps=int(os.environ["BENCH_STEPS"])),
        parallel=Parallel(dense="ddp", embeddings="table_wise"),
        evaluation=Evaluation(every=Duration(steps=10**9), batch=BATCH),
        checkpoint=Checkpoint(every=Duration(steps=10**9)),
        cluster=Cluster(workers=2),
        tracking=Tracking(to=()),
        handoff=Handoff(export=False),
        metrics=(AUC(), LogLoss()),
        log_every_steps=int(os.environ["BENCH_LOG_EVERY"]),
    )


if __name__ == "__main__":
    nothing_but_help("bench.job", __doc__)
    main(run)
