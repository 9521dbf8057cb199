"""Matrix factorisation by pairwise ranking on MovieLens-100K, judged on the whole catalogue.

python recipes/bpr_movielens.py                      # here, on the embedded Ray
python recipes/bpr_movielens.py train --model.dim 32 --name bpr-32
"""

from dataclasses import replace

from rtrain import (
    BPR,
    MF,
    MRR,
    NDCG,
    Adagrad,
    Checkpoint,
    Cluster,
    Duration,
    Evaluation,
    HitRate,
    Pairs,
    Parallel,
    PrecisionAt,
    RandomPerUser,
    RecallAt,
    Run,
    main,
)

USERS, ITEMS = 944, 1683  # ids count from 1


def run() -> Run:
    """RecBole's protocol: 80/10/10 by chance of each user's ratings, every unseen item ranked."""
    return Run(
        name="bpr-movielens",
        model=MF(dim=64, objective=BPR()),
        data=Pairs(source="ml-100k", users=USERS, items=ITEMS, split=RandomPerUser(valid=0.1, test=0.1)),
        sparse_optim=Adagrad(lr=0.03),
        global_batch=2048,
        duration=Duration(epochs=100),
        parallel=Parallel(dense="ddp"),
        evaluation=Evaluation(monitor="mrr@10", patience=20),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        metrics=(NDCG(k=10), RecallAt(k=10), MRR(k=10), HitRate(k=10), PrecisionAt(k=10)),
    )


def debug() -> Run:
    """The same path in seconds."""
    return replace(run(), name="bpr-movielens-debug", duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
