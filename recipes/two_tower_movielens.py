"""Two towers with in-batch negatives on MovieLens-100K: the split and the ranking of recipes/bpr_movielens.py.

python recipes/two_tower_movielens.py                # here, on the embedded Ray
python recipes/two_tower_movielens.py train --model.hidden 256,128 --name wide
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
    HitRate,
    InBatchSoftmax,
    Negatives,
    Pairs,
    Parallel,
    PrecisionAt,
    RandomPerUser,
    RecallAt,
    Run,
    TwoTower,
    main,
)

USERS, ITEMS = 944, 1683  # ids count from 1


def run() -> Run:
    """The loss is over the items of the global batch, whatever the number of ranks."""
    return Run(
        name="two-tower-movielens",
        model=TwoTower(dim=64, hidden=(128,), objective=InBatchSoftmax(cosine=True, temperature=0.1), scale=0.1),
        data=Pairs(
            source="ml-100k", users=USERS, items=ITEMS, split=RandomPerUser(valid=0.1, test=0.1),
            negatives=Negatives(count=0),
        ),
        optim=AdamW(lr=1e-3),
        sparse_optim=Adagrad(lr=0.03),
        global_batch=2048,
        duration=Duration(epochs=100),
        parallel=Parallel(dense="zero", zero_stage=1),
        evaluation=Evaluation(monitor="mrr@10", patience=20),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        metrics=(NDCG(k=10), RecallAt(k=10), MRR(k=10), HitRate(k=10), PrecisionAt(k=10)),
    )  # fmt: skip


def debug() -> Run:
    """The same path in seconds."""
    return replace(run(), name="two-tower-movielens-debug", duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
