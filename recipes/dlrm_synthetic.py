"""DLRM on rows of Criteo's shape whose labels a known model drew: 13 numbers, 26 tables, zipf ids.

The best AUC that any model can reach on the test rows is known: see rtrain/data/synthetic.py, and
`rtrain.data.synthetic.best_auc`. What the training rows can teach ends below it, and comes with a weight of each id
beside the interactions and a pull to 0 on all rows, as the prior has it: docs/quality.md.

python recipes/dlrm_synthetic.py
"""

from dataclasses import replace

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
    Schedule,
    Schema,
    main,
)
from rtrain.data import synthetic

SCHEMA = Schema(
    features=(
        *(Dense(name=name) for name in synthetic.DENSE),
        *(Id(name=name, rows=rows) for name, rows in zip(synthetic.IDS, synthetic.TABLE_ROWS, strict=True)),
    ),
    time="at",
)
TRAIN_ROWS = 1_860_000


def run() -> Run:
    return Run(
        name="dlrm-synthetic",
        model=DLRM(dim=8, bottom=(64,), top=(64, 32), first_order=True),
        data=Interactions(source=synthetic.NAME, schema=SCHEMA, split=ByTime(valid=0.02, test=0.05)),
        optim=AdamW(lr=2e-3, schedule=Schedule(decay="linear")),
        sparse_optim=RowWiseAdagrad(lr=7e-2, l2=40 / TRAIN_ROWS, schedule=Schedule(decay="linear")),
        global_batch=4096,
        duration=Duration(epochs=4),
        parallel=Parallel(dense="ddp", embeddings="sharded"),
        evaluation=Evaluation(every=Duration(steps=100), monitor="auc"),
        checkpoint=Checkpoint(every=Duration(steps=400), keep=1),
        cluster=Cluster(workers=2),
        handoff=Handoff(),
        metrics=(AUC(), LogLoss()),
    )


def debug() -> Run:
    """The same path in seconds."""
    made = run()
    data = replace(made.data, window_rows=100_000)
    return replace(made, name="dlrm-synthetic-debug", data=data, duration=Duration(steps=5), log_every_steps=1)


if __name__ == "__main__":
    main(run, debug)
