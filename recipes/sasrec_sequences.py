"""SASRec on any text file of `user item item ...` lines, oldest first: each user's last item is to be found among all.

python recipes/sasrec_sequences.py --data.source beauty.txt --data.users 22364 --data.items 12102
python recipes/sasrec_sequences.py train --debug     # on MovieLens-100K, in seconds

Ids are whole numbers from 0 on; `data.users` and `data.items` are the largest of each and one.
"""

from dataclasses import replace

from rtrain import (
    MRR,
    NDCG,
    Adagrad,
    AdamW,
    Checkpoint,
    Cluster,
    Duration,
    Evaluation,
    Handoff,
    Histories,
    HitRate,
    LeaveOneOut,
    Negatives,
    Parallel,
    Run,
    SampledBinary,
    SASRec,
    main,
)


def run() -> Run:
    """The paper's settings for sparse data: 2 layers, 50 positions, dropout 0.5, one negative a position."""
    return Run(
        name="sasrec-sequences",
        model=SASRec(dim=64, layers=2, heads=2, dropout=0.5, objective=SampledBinary()),
        data=Histories(
            source="sequences.txt", users=100_000, items=100_000, length=50, time="", split=LeaveOneOut(),
            negatives=Negatives(count=1),
        ),
        optim=AdamW(lr=1e-3),
        sparse_optim=Adagrad(lr=0.05),
        global_batch=128,
        duration=Duration(epochs=200),
        parallel=Parallel(dense="zero", zero_stage=1),
        evaluation=Evaluation(monitor="ndcg@10", patience=10),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        handoff=Handoff(export=False),
        metrics=(NDCG(k=10), HitRate(k=10), MRR(k=10)),
    )  # fmt: skip


def debug() -> Run:
    """The same path in seconds, on MovieLens-100K."""
    data = replace(run().data, source="ml-100k", users=944, items=1683, time="timestamp")
    return replace(run(), name="sasrec-sequences-debug", data=data, duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
