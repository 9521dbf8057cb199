"""The real `Replica` and the real job in worlds of 1, 2 and 4, against plain torch in one process.

The rows do not divide over the ranks, one table has fewer rows than there are ranks, and the job moves
between worlds and layouts while it trains.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.batch import Batch, Jagged
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored, newest
from rtrain.checkpoint.writing import save
from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.errors import RtrainError, RunFailed
from rtrain.evaluation.scoring import measure
from rtrain.ledger.proof import prove
from rtrain.mesh import Parallel, lay_out
from rtrain.metrics import AUC, GAUC, NDCG, LogLoss
from rtrain.metrics.state import Scored, evaluate
from rtrain.models.dlrm import DLRM
from rtrain.models.unsharded import Unsharded
from rtrain.nn.tables import initial_rows
from rtrain.optim import SGD, AdamW, RowWiseAdagrad, Schedule
from rtrain.run import Checkpoint, Evaluation, Run
from rtrain.schema import Dense, Id, IdList, Schema
from rtrain.storage import Folder
from rtrain.training.breakdown import Stopwatch
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.job import run_job
from rtrain.training.replica import Replica
from rtrain.training.world import join

WORLDS = (2, 1, 4)  # in the order in which the moving job meets them
ROWS = 23
# One step from equal weights; gradients are sums of at most 23 products of numbers below 1, in another order.
ROUNDING = 1e-6
SCHEMA = Schema(
    features=(
        Dense(name="a"),
        Dense(name="b"),
        Id(name="user", rows=50),
        Id(name="item", rows=71),
        IdList(name="seen", rows=71, table="item", max_length=4),
        Id(name="kind", rows=3),  # over four ranks, some have none of its rows
        Id(name="place", rows=5),
    ),
    group="user",
    time="at",
)
LAYOUTS = {
    "ddp sharded": Parallel(dense="ddp"),
    "ddp table_wise": Parallel(dense="ddp", embeddings="table_wise"),
    "ddp column_wise": Parallel(dense="ddp", embeddings="column_wise"),
    "zero0 row_wise": Parallel(zero_stage=0, embeddings="row_wise"),
    "zero1 row_wise": Parallel(zero_stage=1, embeddings="row_wise"),
    "zero2 row_wise": Parallel(zero_stage=2, embeddings="row_wise"),
    "zero3 row_wise": Parallel(zero_stage=3, embeddings="row_wise"),
}
METRICS = (AUC(), LogLoss(), NDCG(k=3), GAUC())
RUN = Run(
    name="replica",
    model=DLRM(dim=16, bottom=(8,), top=(16,)),
    data=Interactions(source="rows.parquet", schema=SCHEMA),
    # A large eps: Adam's first step is then no mere sign, which rounding could turn around.
    optim=AdamW(lr=0.1, eps=1.0, clip_norm=1e6),
    sparse_optim=SGD(lr=0.5),
    global_batch=ROWS,
    metrics=METRICS,
)
HELD = Schedule(warmup_steps=10**9)
STEPS = 24
MOVING = replace(
    RUN,
    name="moving",
    optim=AdamW(lr=0.02, clip_norm=0.5),
    sparse_optim=RowWiseAdagrad(lr=0.1),
    global_batch=101,
    duration=Duration(epochs=2),
    log_every_steps=1,
    evaluation=Evaluation(every=Duration(steps=8), batch=64),
    checkpoint=Checkpoint(every=Duration(steps=5), keep=9),
)
MOVES = {
    2: (Parallel(zero_stage=1, embeddings="row_wise"), 9),
    1: (Parallel(dense="ddp"), 18),
    4: (Parallel(zero_stage=3, embeddings="table_wise"), None),
}


def rows_of(count: int, seed: int) -> pa.Table:
    """Rows as a file has them; the label follows from dense feature `a` and from the kind, with noise."""
    r = np.random.default_rng(seed)
    a, kind = r.normal(size=count), r.integers(0, 3, count)
    return pa.table(
        {
            "a": a,
            "b": r.normal(size=count),
            "user": r.integers(0, 50, count),
            "item": r.integers(0, 71, count),
            "seen": [r.integers(0, 71, n).tolist() for n in r.integers(0, 5, count)],
            "kind": kind,
            "place": r.integers(0, 5, count),
            "at": np.arange(count),
            "label": (a + kind - 1 + r.normal(size=count) > 0).astype(np.int64),
        }
    )


def batch_of(table: pa.Table, first: int = 0, last: int | None = None) -> Batch:
    """Rows [first, last) of a global batch."""
    mine = table.slice(first, (table.num_rows if last is None else last) - first)
    columns = {f.name: [v if isinstance(v, list) else [v] for v in mine[f.name].to_pylist()] for f in SCHEMA.ids}
    flat = [ids for column in columns.values() for ids in column]
    return Batch(
        dense=torch.tensor(np.stack([mine["a"], mine["b"]], axis=1), dtype=torch.float32).view(-1, 2),
        ids=Jagged(
            tuple(columns),
            torch.tensor([i for ids in flat for i in ids], dtype=torch.int64),
            torch.tensor([len(ids) for ids in flat], dtype=torch.int32),
        ),
        label=torch.tensor(mine["label"].to_numpy(), dtype=torch.float32),
        group=torch.tensor(mine["user"].to_numpy()),
        row=torch.arange(first, first + mine.num_rows),
        global_rows=table.num_rows,
    )


def share(table: pa.Table) -> Batch:
    """This rank's rows of a global batch."""
    rank, world, count = dist.get_rank(), dist.get_world_size(), table.num_rows
    return batch_of(table, count * rank // world, count * (rank + 1) // world)


def plain_model() -> Unsharded:
    """The same model unsharded: what every layout begins from."""
    model = RUN.model.build(SCHEMA, seed=RUN.seed)
    with torch.no_grad():
        for table in RUN.model.table_list(SCHEMA):
            bag: Any = model.tables.bags.embedding_bags[table.name]  # type: ignore[union-attr,index]
            bag.weight.copy_(initial_rows(table, RUN.seed, 0, table.rows))
    return model


# What runs on the ranks. -------------------------------------------------------------------------------------------


def check_layouts(folder: str) -> dict[str, Any]:
    """Each layout: predictions before, then one step whose outcome is saved."""
    world = join(gpu=False, timeout_s=60)
    found: dict[str, Any] = {}
    for name, parallel in LAYOUTS.items():
        if name == "ddp column_wise" and world.size == 4:
            name += " dim 16"  # 16 columns over four ranks: the least that fbgemm takes
        replica = replica_of(replace(RUN, parallel=parallel))
        few = share(rows_of(3, seed=3))
        found[name] = {
            "rows": replica.predict(share(rows_of(ROWS, seed=1))).tolist(),
            "few": replica.predict(few).tolist(),
            "loss": float(step(replica)),
            "grad_norm": replica.grad_norm,
        }
        save(CheckpointFolders(f"{folder}/{name}"), 1, replica.chunks(), {})
    held = replace(RUN.optim, schedule=HELD), replace(RUN.sparse_optim, schedule=HELD)
    replica = replica_of(replace(RUN, optim=held[0], sparse_optim=held[1]))
    step(replica)
    save(CheckpointFolders(f"{folder}/held"), 1, replica.chunks(), {})
    return found


def replica_of(run: Run) -> Replica:
    world = join(gpu=False, timeout_s=60)
    return Replica(run, lay_out(run.parallel, world.size), world, stored=None, training=True)


def step(replica: Replica) -> Tensor:
    watch = Stopwatch(replica.world.device)
    return replica.train_step(share(rows_of(ROWS, seed=1)), step=0, total_steps=100, watch=watch)


def check_scores() -> dict[str, Any]:
    """Metrics over the ranks, and what happens when one rank has a row that is no number."""
    replica = replica_of(RUN)
    tables = [rows_of(n, seed=n) for n in (40, 41, 5)]
    good = measure(replica, [share(t) for t in tables], METRICS)
    bad = [share(t) for t in tables]
    if replica.world.rank == replica.world.size - 1:
        bad[1].dense[0, 0] = float("nan")
    return {"metrics": good, "refused": error_of(lambda: measure(replica, bad, METRICS))}


def check_failing_save(folder: str) -> str:
    """The last rank cannot write its share."""
    world = join(gpu=False, timeout_s=60)
    replica = replica_of(RUN)
    kept = Folder.adopt

    def adopt(self: Folder, source: Path, name: str) -> None:
        if world.rank == world.size - 1:
            raise OSError(28, "No space left on device")
        kept(self, source, name)

    Folder.adopt = adopt  # type: ignore[method-assign]
    try:
        return error_of(lambda: save(CheckpointFolders(folder), 3, replica.chunks(), {}))
    finally:
        Folder.adopt = kept  # type: ignore[method-assign]


def check_failing_prune(moving: Run) -> dict[str, Any]:
    """Rank 0 cannot delete old checkpoints: no rank fails or waits, and the history tells it."""
    kept = CheckpointFolders.prune

    def prune(self: CheckpointFolders, *arguments: Any, **options: Any) -> list[int]:
        raise OSError(5, "Input/output error")

    CheckpointFolders.prune = prune  # type: ignore[method-assign]
    try:
        run = replace(
            moving, name="unpruned", parallel=MOVES[2][0], checkpoint=Checkpoint(every=Duration(steps=5), keep=1)
        )
        found = train_part(run, None)
    finally:
        CheckpointFolders.prune = kept  # type: ignore[method-assign]
    return found | {"committed": CheckpointFolders(run.folder).committed()}


def error_of(work: Any) -> str:
    try:
        work()
    except RtrainError as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Dies(Callback):
    def __init__(self, at: int | None):
        self.at = at
        self.losses: dict[int, float] = {}

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        if point is not None:
            self.losses[state.step] = point.loss
        if state.step == self.at:
            raise RuntimeError("on purpose")


def train_part(run: Run, until: int | None) -> dict[str, Any]:
    """Train until a step where all ranks die, or to the end."""
    world = join(gpu=False, timeout_s=60)
    callback = Dies(until)
    try:
        outcome = run_job(run, world, [callback])
    except RunFailed as error:
        return {"losses": callback.losses, "error": str(error)}
    return {"losses": callback.losses, "test": outcome.test, "steps": outcome.steps, "attempts": outcome.attempts}


def everything(folder: str, moving: Run) -> dict[str, Any]:
    size = dist.get_world_size()
    found = {
        "layouts": check_layouts(f"{folder}/{size}"),
        "scores": check_scores(),
        "save": check_failing_save(f"{folder}/{size}/failing"),
        "moving": train_part(replace(moving, parallel=MOVES[size][0]), MOVES[size][1]),
    }
    if size == 2:
        found["prune"] = check_failing_prune(moving)
    if size == 1:
        found["still"] = train_part(replace(moving, name="still", parallel=MOVES[1][0]), None)
    return found


# What is expected. -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replica")


@pytest.fixture(scope="module")
def found(folder: Path) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """World size -> what each rank found."""
    from tests.parallel.worlds import in_world

    pq.write_table(rows_of(1500, seed=0), folder / "rows.parquet", row_group_size=400)
    data = replace(MOVING.data, source=str(folder / "rows.parquet"))
    moving = replace(MOVING, data=data, storage=str(folder / "runs"))
    yield {size: in_world(size, everything, str(folder), moving) for size in WORLDS}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The same step by hand: plain torch, one process, the mean over all rows."""
    model = plain_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = batch_of(rows_of(ROWS, seed=1))
    with torch.no_grad():
        rows = model(batch).sigmoid().tolist()
        few = model(batch_of(rows_of(3, seed=3))).sigmoid().tolist()
    dense = [p for n, p in model.named_parameters() if n.startswith("tower.")]
    adam = torch.optim.AdamW(dense, lr=0.1, eps=1.0, weight_decay=0.0)
    loss = binary_cross_entropy_with_logits(model(batch), batch.label)
    loss.backward()
    norm = float(torch.stack([p.grad.norm() for p in dense if p.grad is not None]).norm())
    adam.step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("tables."):
                parameter -= 0.5 * parameter.grad
    return {
        "rows": rows,
        "few": few,
        "loss": float(loss),
        "grad_norm": norm,
        "before": before,
        "after": model.state_dict(),
    }


def by_layout(found: dict[int, list[dict[str, Any]]]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """World and layout, the folder of what it saved, and what each rank found."""
    for size, ranks in found.items():
        for name in ranks[0]["layouts"]:
            yield f"{size} {name}", f"{size}/{name}", [rank["layouts"][name] for rank in ranks]


def far(a: list[float], b: list[float]) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


def test_every_layout_predicts_what_the_plain_model_does(found: Any, plain: dict[str, Any]) -> None:
    for kind in ("rows", "few"):
        # Over four ranks, the first one has none of the three rows.
        worst = {
            name: far([p for rank in ranks for p in rank[kind]], plain[kind]) for name, _, ranks in by_layout(found)
        }
        assert len(worst) == 3 * len(LAYOUTS)
        assert max(worst.values()) < ROUNDING, worst


def test_one_step_is_the_mean_over_the_global_batch(found: Any, plain: dict[str, Any], folder: Path) -> None:
    for name, where, ranks in by_layout(found):
        assert sum(rank["loss"] for rank in ranks) / ROWS == pytest.approx(plain["loss"], abs=ROUNDING), name
        assert [rank["grad_norm"] for rank in ranks] == pytest.approx([plain["grad_norm"]] * len(ranks), rel=1e-5), name
        stored = Stored(CheckpointFolders(str(folder / where)).of(1), 1)
        assert set(stored.names("model.")) == {f"model.{k}" for k in plain["after"]}
        for key, expected in plain["after"].items():
            got = stored.tensor(f"model.{key}")
            assert (got - expected).abs().max() < ROUNDING, f"{name}: {key}"
            moved = (expected - plain["before"][key]).abs().max()
            assert moved > 1e-4, f"{key} did not move, so it proves nothing"


def test_schedules_hold_tower_and_tables_back(found: Any, plain: dict[str, Any], folder: Path) -> None:
    for size in found:
        stored = Stored(CheckpointFolders(str(folder / f"{size}/held")).of(1), 1)
        for key, before in plain["before"].items():
            assert (stored.tensor(f"model.{key}") - before).abs().max() < 1e-7, key


def test_metrics_are_those_of_all_rows_on_every_rank(found: Any) -> None:
    model = plain_model()
    batches = [batch_of(rows_of(n, seed=n)) for n in (40, 41, 5)]
    with torch.no_grad():
        logits = np.concatenate([model(b).double().numpy() for b in batches])
    labels = np.concatenate([b.label.double().numpy() for b in batches])
    groups = np.concatenate([b.group.numpy() for b in batches])
    expected = evaluate(METRICS, [m.partial(Scored(logits, labels, groups)) for m in METRICS])
    for ranks in found.values():
        for rank in ranks:
            assert rank["scores"]["metrics"] == ranks[0]["scores"]["metrics"]
        assert ranks[0]["scores"]["metrics"] == pytest.approx(expected, abs=ROUNDING)


def test_one_row_that_is_no_number_is_refused_on_every_rank(found: Any) -> None:
    for ranks in found.values():
        for rank in ranks:
            assert rank["scores"]["refused"].startswith(
                "RunFailed: the model gives 1 rows a logit that is not a finite number"
            )


def test_a_share_that_cannot_be_written_is_told_on_every_rank(found: Any, folder: Path) -> None:
    for size, ranks in found.items():
        assert len({rank["save"] for rank in ranks}) == 1
        assert ranks[0]["save"].startswith(
            f"CheckpointError: checkpoint step 3: rank {size - 1}: OSError: [Errno 28] No space left on device. Nothing"
        )
        assert CheckpointFolders(str(folder / f"{size}/failing")).steps() == []


def test_a_job_that_moves_between_worlds_and_layouts_is_the_job_that_stays(found: Any) -> None:
    still = found[1][0]["still"]
    assert still["steps"] == STEPS
    begins = {2: 1, 1: 9, 4: 17}  # behind the newest checkpoint: every five steps, and at the best score so far
    for size, ranks in found.items():
        part = ranks[0]["moving"]
        assert [rank["moving"]["losses"] for rank in ranks] == [part["losses"]] * size
        assert [int(s) for s in part["losses"]] == list(range(begins[size], (MOVES[size][1] or STEPS) + 1))
        # 24 steps of Adam and Adagrad carry a last bit along; a lost or repeated row shows as 1e-2.
        assert far(list(part["losses"].values()), [still["losses"][s] for s in part["losses"]]) < 1e-5
        for number, rank in enumerate(ranks if MOVES[size][1] else []):
            assert rank["moving"]["error"].startswith(f"rank {number} on ")
            assert rank["moving"]["error"].endswith(f", step {MOVES[size][1]}: RuntimeError: on purpose")
    last = found[4][0]["moving"]
    assert (last["steps"], last["attempts"]) == (STEPS, 3)
    assert last["test"] == pytest.approx(still["test"], abs=1e-5)


def test_the_ledger_of_the_job_that_moved_proves_that_no_row_was_lost_or_repeated(found: Any, folder: Path) -> None:
    hashes = []
    for name in ("still", MOVING.name):
        stored, _ = newest(CheckpointFolders(str(folder / "runs" / name)))
        assert stored is not None
        assert stored.step == STEPS
        data = replace(MOVING.data, source=str(folder / "rows.parquet")).open()
        epochs = prove(stored, data.numbers("train"))
        assert [e.verdict for e in epochs if not e.holds] == []
        assert sum(e.consumed for e in epochs) == 2 * data.rows("train")
        hashes.append([e.hash for e in epochs])
    assert hashes[0] == hashes[1]


def test_a_prune_that_fails_on_the_first_rank_ends_no_rank(found: Any, folder: Path) -> None:
    for rank in found[2]:
        assert rank["prune"].get("steps") == STEPS and len(rank["prune"]["committed"]) >= 5, rank["prune"]
    history = (folder / "runs" / "unpruned" / "history.jsonl").read_text()
    assert "old checkpoints could not be deleted" in history
