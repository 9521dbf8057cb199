"""DLRM on MovieLens-100K: sharded tables, a dense tower under ZeRO-1, two workers, real data.

python recipes/dlrm_movielens.py                     # here, on the embedded Ray
python recipes/dlrm_movielens.py plan                # who sits where, what goes where
python recipes/dlrm_movielens.py train --parallel.dense ddp --optim.lr 3e-4
python recipes/dlrm_movielens.py tune --trials 4
ray job submit --working-dir . -- python recipes/dlrm_movielens.py train
"""

from dataclasses import replace

from rtrain import (
    AUC,
    DLRM,
    NDCG,
    AdamW,
    ByTime,
    Checkpoint,
    Cluster,
    Dense,
    Duration,
    Evaluation,
    Faults,
    Handoff,
    Id,
    IdSequence,
    Interactions,
    LogLoss,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schema,
    loguniform,
    main,
)
from rtrain.data.movielens_features import CONTENT, IDS, ITEMS, RESIDUALS, USER_SEEN

SCHEMA = Schema(
    features=(
        *IDS,
        Id(name="hour", rows=24),
        IdSequence(name="history", entity="user", rows=ITEMS, max_length=20),
        *CONTENT,
        # What was known of the user and of the item before this moment: of how many rows, and what they said.
        USER_SEEN,
        Dense(name="item_seen", entity="item", mean=4.0, std=1.5),
        *RESIDUALS,
    ),
    group="user_id",
    time="timestamp",
)

SPACE = {"optim.lr": loguniform(3e-4, 1e-2), "sparse_optim.lr": loguniform(1e-3, 1e-1)}


def run() -> Run:
    """The main job."""
    return Run(
        name="dlrm-movielens",
        model=DLRM(dim=16, bottom=(64,), top=(64, 32), dropout=0.1),
        data=Interactions(source="ml-100k", schema=SCHEMA, split=ByTime(valid=0.1, test=0.1)),
        optim=AdamW(lr=2e-3),
        sparse_optim=RowWiseAdagrad(lr=2e-3),
        global_batch=512,
        duration=Duration(epochs=3),
        parallel=Parallel(dense="zero", zero_stage=1, embeddings="sharded"),
        evaluation=Evaluation(every=Duration(steps=20), monitor="auc", patience=8),
        checkpoint=Checkpoint(every=Duration(steps=200), keep=3),
        faults=Faults(max_failures=3),
        cluster=Cluster(workers=2),
        handoff=Handoff(serve_check=True),
        metrics=(AUC(), LogLoss(), NDCG(k=10)),
    )


def debug() -> Run:
    """The same path in seconds."""
    made = replace(
        run(), name="dlrm-movielens-debug", duration=Duration(steps=20), log_every_steps=5, handoff=Handoff()
    )
    return replace(made, evaluation=replace(made.evaluation, boosting_rows=10_000))


if __name__ == "__main__":
    main(run, debug, space=SPACE)
