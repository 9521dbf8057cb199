"""DLRM on Criteo's click logs: 13 counts, 26 words hashed into tables, the newest rows for validation and test.

The text that Criteo publishes is read as it is, and made Parquet in each node's cache at the first start:

python recipes/dlrm_criteo.py --data.source criteo:train.txt.gz

Where there are many nodes, or for the Terabyte logs, it is made once for all, on any storage:

rtrain data criteo train.txt.gz --out s3://bucket/criteo
python recipes/dlrm_criteo.py --data.source s3://bucket/criteo

`--debug` trains on 20,000 rows of that shape, with planted labels, which are made on the spot.
"""

from dataclasses import replace

from rtrain import (
    AUC,
    DLRM,
    AdamW,
    ByTime,
    Calibration,
    Checkpoint,
    Cluster,
    Dense,
    Duration,
    Evaluation,
    Handoff,
    Id,
    Interactions,
    Log1p,
    LogLoss,
    NormalizedEntropy,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schedule,
    Schema,
    main,
)
from rtrain.data import criteo

SCHEMA = Schema(
    features=(
        *(Dense(name=name, encoding=Log1p(), missing=0.0) for name in criteo.NUMBERS),
        *(Id(name=name, rows=criteo.HASHED) for name in criteo.WORDS),
    ),
    time=criteo.ORDER,
)


def run() -> Run:
    return Run(
        name="dlrm-criteo",
        # Layers and dim of the DLRM paper's Criteo runs (Naumov et al., arXiv:1906.00091).
        model=DLRM(dim=16, bottom=(512, 256, 64), top=(512, 256)),
        # Of the challenge's seven days about the last: half of it validates, half tests.
        data=Interactions(source="criteo", schema=SCHEMA, split=ByTime(valid=1 / 14, test=1 / 14)),
        optim=AdamW(lr=1e-3, schedule=Schedule(decay="linear")),
        sparse_optim=RowWiseAdagrad(lr=2e-2, schedule=Schedule(decay="linear")),
        global_batch=8192,
        duration=Duration(epochs=1),
        parallel=Parallel(dense="ddp", embeddings="sharded"),
        evaluation=Evaluation(every=Duration(steps=1000), monitor="auc"),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        handoff=Handoff(serve_check=True),
        metrics=(AUC(), LogLoss(), NormalizedEntropy(), Calibration()),
    )


def debug() -> Run:
    """The same path in seconds."""
    made = replace(run(), name="dlrm-criteo-debug", global_batch=512, log_every_steps=5, handoff=Handoff())
    small = replace(made.model, dim=8, bottom=(64, 32), top=(64, 32))
    data = replace(made.data, source=criteo.SAMPLE)
    return replace(made, model=small, data=data, duration=Duration(steps=30))


if __name__ == "__main__":
    main(run, debug)
