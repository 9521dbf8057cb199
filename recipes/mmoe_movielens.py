"""MMoE on MovieLens-100K: which film a user rates (click), and whether he likes it (like), from one model.

A click is a rating, beside which stands one film drawn from those that the user never rated; a like is a
rating of at least 4, and a drawn film has none (see rtrain/data/clicks.py). Metrics without a prefix are of
click, `like_auc` and the like are of like, over the rated rows only.

python recipes/mmoe_movielens.py
python recipes/mmoe_movielens.py train --model.task_weights 1,0.5
"""

from dataclasses import replace

from rtrain import (
    AUC,
    GAUC,
    AdamW,
    ByTime,
    Checkpoint,
    Cluster,
    Dense,
    Duration,
    Evaluation,
    Handoff,
    IdSequence,
    Interactions,
    Label,
    LogLoss,
    MMoE,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schema,
    main,
)
from rtrain.data.movielens_features import CONTENT, IDS, ITEMS, USER_SEEN

SCHEMA = Schema(
    features=(
        *IDS,
        IdSequence(name="history", entity="user", rows=ITEMS, table="item_id", max_length=20),
        *CONTENT,
        # What was known of the user and of the item before this moment: how much was liked, of how many.
        Dense(name="user_liked", entity="user", mean=0.55, std=0.2),
        USER_SEEN,
        Dense(name="item_liked", entity="item", mean=0.55, std=0.2),
        Dense(name="item_seen", entity="item", mean=3.0, std=2.0),
    ),
    label=Label(name="click"),
    more_labels=(Label(name="like", optional=True),),
    group="user_id",
    time="timestamp",
)


def run() -> Run:
    return Run(
        name="mmoe-movielens",
        model=MMoE(dim=16, experts=4, expert=(64, 32), towers=(32,), dropout=0.1),
        data=Interactions(source="ml-100k-clicks", schema=SCHEMA, split=ByTime(valid=0.1, test=0.1)),
        optim=AdamW(lr=2e-3),
        sparse_optim=RowWiseAdagrad(lr=2e-3),
        global_batch=1024,
        duration=Duration(epochs=3),
        parallel=Parallel(dense="zero", zero_stage=1, embeddings="sharded"),
        evaluation=Evaluation(every=Duration(steps=40), monitor="auc", patience=6),
        checkpoint=Checkpoint(every=Duration(steps=200), keep=3),
        cluster=Cluster(workers=2),
        handoff=Handoff(serve_check=True),
        metrics=(AUC(), LogLoss(), GAUC()),
    )


def debug() -> Run:
    """The same path in seconds."""
    made = replace(
        run(), name="mmoe-movielens-debug", duration=Duration(steps=20), log_every_steps=5, handoff=Handoff()
    )
    return replace(made, evaluation=replace(made.evaluation, boosting_rows=10_000))


if __name__ == "__main__":
    main(run, debug)
