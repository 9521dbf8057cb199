"""HSTU on MovieLens-100K, beside recipes/sasrec_movielens.py: each user's last item is to be found among all.

python recipes/hstu_movielens.py                   # here, on the embedded Ray
python recipes/hstu_movielens.py train --model.layers 4 --name hstu-deep
"""

from dataclasses import replace

from rtrain import (
    HSTU,
    MRR,
    NDCG,
    Adagrad,
    AdamW,
    Checkpoint,
    Cluster,
    Duration,
    Evaluation,
    Histories,
    HitRate,
    LeaveOneOut,
    Negatives,
    Parallel,
    Run,
    SampledSoftmax,
    main,
)

USERS, ITEMS = 944, 1683  # ids count from 1


def run() -> Run:
    """Leave one out: the last rating tests, the one before it validates, every unseen item is ranked."""
    return Run(
        name="hstu-movielens",
        model=HSTU(dim=64, layers=2, heads=2, dropout=0.5, objective=SampledSoftmax()),
        data=Histories(
            source="ml-100k", users=USERS, items=ITEMS, length=50, split=LeaveOneOut(), negatives=Negatives(count=20)
        ),
        optim=AdamW(lr=1e-3),
        sparse_optim=Adagrad(lr=0.02),
        global_batch=128,
        duration=Duration(epochs=200),
        parallel=Parallel(dense="zero", zero_stage=1),
        evaluation=Evaluation(every=Duration(steps=40), monitor="ndcg@10", patience=6),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        metrics=(NDCG(k=10), HitRate(k=10), MRR(k=10)),
    )


def debug() -> Run:
    """The same path in seconds."""
    return replace(run(), name="hstu-movielens-debug", duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
