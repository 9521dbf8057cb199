"""LightGCN on MovieLens-100K: who had what as a graph, judged on the whole catalogue.

python recipes/lightgcn_movielens.py                      # here, on the embedded Ray
python recipes/lightgcn_movielens.py train --model.layers 2 --name lightgcn-2
"""

from dataclasses import replace

from rtrain import (
    BPR,
    MRR,
    NDCG,
    Adagrad,
    Checkpoint,
    Cluster,
    Duration,
    Evaluation,
    Graph,
    HitRate,
    LightGCN,
    Parallel,
    PrecisionAt,
    RandomPerUser,
    RecallAt,
    Run,
    main,
)

USERS, ITEMS = 944, 1683  # ids count from 1
EDGES = 100_000  # ratings, of which four in five train


def run() -> Run:
    """RecBole's protocol: 80/10/10 by chance of each user's ratings, every unseen item ranked."""
    return Run(
        name="lightgcn-movielens",
        model=LightGCN(dim=64, layers=3, objective=BPR()),
        data=Graph(source="ml-100k", users=USERS, items=ITEMS, edges=EDGES, split=RandomPerUser(valid=0.1, test=0.1)),
        sparse_optim=Adagrad(lr=0.1),
        global_batch=2048,
        duration=Duration(epochs=100),
        parallel=Parallel(dense="ddp"),
        evaluation=Evaluation(monitor="mrr@10", patience=50),
        checkpoint=Checkpoint(every=Duration(steps=1000)),
        cluster=Cluster(workers=2),
        metrics=(NDCG(k=10), RecallAt(k=10), MRR(k=10), HitRate(k=10), PrecisionAt(k=10)),
    )


def debug() -> Run:
    """The same path in seconds."""
    return replace(run(), name="lightgcn-movielens-debug", duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
