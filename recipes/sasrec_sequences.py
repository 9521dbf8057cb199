"""SASRec on any text file of `user item item ...` lines, oldest first: each user's last item is to be found among all.

python recipes/sasrec_sequences.py --data.source beauty.txt --data.users 22364 --data.items 12102
python recipes/sasrec_sequences.py train --debug     # on MovieLens-100K, in seconds

Ids are whole numbers from 0 on, and `data.users` and `data.items` the largest of each and one; or any words, with
`--data.raw_ids true`, and then how many there are of each. The file may lie anywhere (s3://...), and be a .txt.gz.
"""

from dataclasses import replace

from rtrain import (
    MRR,
    NDCG,
    Adam,
    AdamW,
    Checkpoint,
    Cluster,
    Duration,
    Evaluation,
    FullSoftmax,
    Histories,
    HitRate,
    LeaveOneOut,
    Negatives,
    Parallel,
    Run,
    SASRec,
    main,
)


def run() -> Run:
    """The paper's settings for sparse data: 2 layers, 50 positions, dropout 0.5, Adam on everything, 1e-3.

    But for the loss: cross-entropy over all items, which does better than one negative a position (Klenitskiy &
    Vasilev, RecSys 2023). A step costs positions x items; of a million items take `SampledSoftmax()` and
    `Negatives(count=256)`, and `Adagrad(lr=0.05)`, which updates the rows that a step reads.
    """
    return Run(
        name="sasrec-sequences",
        model=SASRec(dim=64, layers=2, heads=2, dropout=0.5, objective=FullSoftmax()),
        data=Histories(
            source="sequences.txt", users=100_000, items=100_000, length=50, time="", split=LeaveOneOut(),
            negatives=Negatives(by="all"),
        ),
        optim=AdamW(lr=1e-3),
        sparse_optim=Adam(lr=1e-3),
        global_batch=128,
        duration=Duration(epochs=200),
        parallel=Parallel(dense="zero", zero_stage=1),
        evaluation=Evaluation(monitor="ndcg@10", patience=10),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        metrics=(NDCG(k=10), HitRate(k=10), MRR(k=10)),
    )  # fmt: skip


def debug() -> Run:
    """The same path in seconds, on MovieLens-100K."""
    data = replace(run().data, source="ml-100k", users=944, items=1683, time="timestamp")
    return replace(run(), name="sasrec-sequences-debug", data=data, duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
