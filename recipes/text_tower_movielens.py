"""Two towers on MovieLens-100K that read films' titles, beside ids and what else is known of users and films.

python recipes/text_tower_movielens.py       # here, on the embedded Ray
python recipes/text_tower_movielens.py train --model.ids false --name by-title
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
    TextTower,
    main,
)
from rtrain.data.movielens_features import OF_FILMS, OF_USERS, TITLE

USERS, ITEMS = 944, 1683  # ids count from 1


def run() -> Run:
    """Titles beside all that `two_tower_features_movielens` reads, trained as there."""
    return Run(
        name="text-tower-movielens",
        model=TextTower(dim=64, hidden=(128,), objective=InBatchSoftmax(cosine=True, temperature=0.1), scale=0.1),
        data=Pairs(
            source="ml-100k", users=USERS, items=ITEMS, split=RandomPerUser(valid=0.1, test=0.1),
            negatives=Negatives(count=0), user_features=OF_USERS,
            item_features=replace(OF_FILMS, features=(*OF_FILMS.features, TITLE)),
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
    return replace(run(), name="text-tower-movielens-debug", duration=Duration(steps=20), log_every_steps=5)


if __name__ == "__main__":
    main(run, debug)
