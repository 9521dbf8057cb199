"""Tables beside tensor and pipeline ranks and every wrapping: plain torch's losses and tables, what is found, a resume.

Two kinds of lookup: pooled vectors, of a model that a user may have written (`users_model`), and histories beside
candidates of the same table, which is read at the first stage and again at the last. `make test` trains a draw of the
combinations, `make test-all` all of them. The controls know neither a carried vector nor a cut weight.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.writing import save
from rtrain.data.interactions import Interactions
from rtrain.errors import ConfigError
from rtrain.mesh import ONE_STAGE_A_RANK, Parallel, lay_out
from rtrain.nn.tables import initial_rows
from rtrain.parallel import carry
from rtrain.parity import name_of, world_of
from rtrain.run import Cluster, Run
from rtrain.training.agreement import refuse
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from tests.parallel import test_retrieval as retrieval
from tests.parallel import users_model
from tests.parallel.test_models import descent
from tests.parallel.users_model import Blocks
from tests.parallel.worlds import (
    DENSE_OPTIM,
    ROWS,
    SCHEMA,
    STEPS,
    Tables,
    global_batch,
    in_world,
    train,
    whole_tables,
)

# Losses of 0.5 to 5, weights of the tables around 1; a wrong factor on the tables' gradients shows as 7e-3 in both.
PARITY = 1e-5
DRAWN, SAVED = 18, 10
AXES: tuple[dict[str, Any], ...] = (
    {"data": 2},
    {"data": 1, "tensor": 2},
    {"data": 1, "pipeline": 2, "microbatches": 2, "schedule": "gpipe"},
    {"data": 1, "pipeline": 2, "microbatches": 3, "schedule": "1f1b"},
    {"data": 1, "pipeline": 2, "microbatches": 2, "schedule": "interleaved_1f1b"},
    {"data": 1, "pipeline": 2, "microbatches": 4, "schedule": "interleaved_zero_bubble"},
    {"data": 1, "pipeline": 2, "microbatches": 2, "schedule": "zbv_zero_bubble"},
    {"data": 2, "tensor": 2, "microbatches": 2},
    {"data": 2, "pipeline": 2, "microbatches": 2},
    {"data": 1, "tensor": 2, "pipeline": 2, "microbatches": 2},
)
WRAPS: tuple[dict[str, Any], ...] = ({"dense": "ddp"}, *({"dense": "zero", "zero_stage": stage} for stage in (1, 2, 3)))
# Adagrad divides by the gradients' own size, so that SGD alone sees a wrong factor on all of them.
SPARSE = {"table_wise": "sgd", "row_wise": "rowwise", "column_wise": "adagrad"}
MODELS = ("pooled", "sasrec", "hstu")
# What two stages of two tensor ranks saved goes on as two stages, and as two replicas.
SAVED_AS = Parallel(data=1, tensor=2, pipeline=2, microbatches=2, zero_stage=1, embeddings="row_wise")
RESUMED_AS = (
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=3, embeddings="column_wise"),
    Parallel(data=2, dense="ddp", embeddings="table_wise"),
)
# Whose tables' gradients are scaled as the dense ones are clipped; the norm is known otherwise in each.
CLIPPED = (
    Parallel(data=2, zero_stage=3),
    Parallel(data=1, tensor=2, dense="ddp"),
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=1),
    Parallel(data=2, pipeline=2, microbatches=2, zero_stage=0),
)
Case = tuple[str, Parallel, str]
Trained = tuple[list[float], Tables]
"""Losses of the steps, and the tables after the last."""
Control = tuple[list[float], dict[str, torch.Tensor]]
Found = dict[str, dict[str, Any]]


def run_of(model: str, parallel: Parallel, sparse: str, log: str) -> Run:
    if model != "pooled":
        return retrieval.run_of(model, parallel, sparse, log)
    return Run(
        name="pooled",
        model=Blocks(dim=16),
        data=Interactions(source="not read", schema=SCHEMA),
        optim=DENSE_OPTIM,
        sparse_optim=retrieval.SPARSE[sparse],
        parallel=parallel,
        global_batch=ROWS,
        cluster=Cluster(memory_gb_per_worker=1.0),
    )


def combinations(log: str) -> Iterator[Case]:
    """All that are legal: every one, but that ZeRO-3 knows no zero bubble."""
    for model, axes, wrap, tables in product(MODELS, AXES, WRAPS, SPARSE):
        layout = Parallel(**axes, **wrap, embeddings=tables)  # type: ignore[arg-type]
        try:
            refuse(run_of(model, layout, SPARSE[tables], log), lay_out(layout, world_of(layout)))
        except ConfigError as error:
            assert layout.zero_stage == 3 and "zero_stage: 3 with schedule" in str(error), error
            continue
        yield model, layout, SPARSE[tables]


def trained(case: Case, log: str, *, stored: str = "", save_to: str = "", spoil: bool = False) -> Trained:
    model, layout, sparse = case
    kept: list[Replica] = []
    if model == "pooled":
        losses = train(
            layout,
            retrieval.SPARSE[sparse],
            config=Blocks(dim=16),
            save_to=save_to,
            load_from=stored,
            steps=(SAVED if stored else 0, STEPS),
            save_at=SAVED,
            spoil=spoil,
            after=kept.append,
        )
        return losses, whole_tables(kept[0])

    def before(step: int, replica: Replica) -> None:
        if spoil:
            replica.carry.replica_ranks = 1
        if save_to and step == SAVED:
            save(CheckpointFolders(save_to), step, replica.chunks(), {})
        kept[:] = [replica]

    checkpoint = Stored(CheckpointFolders(stored).of(SAVED), SAVED) if stored else None
    losses = trace(run_of(model, layout, sparse, log), steps=STEPS, stored=checkpoint, before_step=before).losses
    return losses, whole_tables(kept[0])


def everything(cases: list[Case], log: str, folder: str) -> Found:
    found: Found = {"trained": {}, "ranked": {}, "resumed": {}, "spoiled": {}, "clipped": {}}
    world = dist.get_world_size()
    for case in cases:
        found["trained"][named(case)] = trained(case, log)
        if case[0] != "pooled":
            found["ranked"][named(case)] = retrieval.measured(run_of(*case, log))
    for layout in CLIPPED:
        if world_of(layout) == world:
            case = ("sasrec", layout, "clipped")
            found["clipped"][named(case)] = trained(case, log)
    for model in MODELS:
        if world == 4:
            trained((model, SAVED_AS, "adagrad"), log, save_to=f"{folder}/{model}")
        else:
            for layout in RESUMED_AS:
                case = (model, layout, "adagrad")
                found["resumed"][named(case)] = trained(case, log, stored=f"{folder}/{model}")
            wrong = (model, Parallel(data=1, tensor=2, dense="ddp", embeddings="row_wise"), "sgd")
            found["spoiled"][named(wrong)] = trained(wrong, log, spoil=True)
    return found


def named(case: Case) -> str:
    return f"{case[0]}: {name_of(case[1])}"


log = retrieval.log


@pytest.fixture(scope="module")
def drawn(log: str) -> list[Case]:
    """A seeded draw, in which every value of every axis is there, and of each model a rank with two stages."""
    cases = random.Random(22).sample(list(combinations(log)), DRAWN)
    for values in (MODELS, AXES, WRAPS, tuple({"embeddings": tables} for tables in SPARSE)):
        for value in values:
            fits = [c for c in cases if (c[0] == value if isinstance(value, str) else contains(c[1], value))]
            assert fits, f"nothing drawn has {value}"
    assert {c[0] for c in cases if c[1].schedule not in ONE_STAGE_A_RANK} == set(MODELS)
    return cases


def contains(layout: Parallel, value: dict[str, Any]) -> bool:
    return all(getattr(layout, field) == x for field, x in value.items())


@pytest.fixture(scope="module")
def found(drawn: list[Case], log: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The world of four saves what the world of two resumes."""
    folder = str(tmp_path_factory.mktemp("kept"))
    parts = [in_world(n, everything, [c for c in drawn if world_of(c[1]) == n], log, folder)[0] for n in (4, 2)]
    return {key: parts[0][key] | parts[1][key] for key in parts[0]}


@pytest.fixture(scope="module")
def control(log: str) -> Callable[[str, str], Control]:
    known: dict[tuple[str, str], Control] = {}

    def of(model: str, sparse: str) -> Control:
        if (model, sparse) not in known:
            run = run_of(model, Parallel(dense="ddp"), sparse, log)
            known[model, sparse] = plain_pooled(run) if model == "pooled" else retrieval.plain_with_tables(run)
        return known[model, sparse]

    return of


def plain_pooled(run: Run) -> Control:
    """One process, whole tables, no piece cut."""
    config: Any = run.model
    model = config.build(SCHEMA, seed=run.seed)
    tables = dict(model.tables.named_parameters())
    for table in config.table_list(SCHEMA):
        tables[f"{table.path}.weight"].data.copy_(initial_rows(table, run.seed, 0, table.rows))
    states = {name: torch.zeros_like(p) for name, p in tables.items()}
    dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
    adam, losses = run.optim.build(dense), []
    for step in range(STEPS):
        batch = global_batch(step)
        loss = binary_cross_entropy_with_logits(model(batch), batch.label, reduction="none").square().mean()
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(dense, run.optim.clip_norm)
        adam.step()
        for name, table in tables.items():
            assert table.grad is not None
            table.data -= run.sparse_optim.lr * descent(run.sparse_optim, states[name], table.grad)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    return losses, {name.split(".")[-2]: table.detach() for name, table in tables.items()}


def far(a: ArrayLike, b: ArrayLike) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and a.size
    return float(np.abs(a - b).max())  # nan where one is: Python's max would hide it


def apart(found: Trained, control: Control) -> tuple[float, float]:
    """Largest difference of a loss, and of a weight of the tables; a resumed run's losses are the control's last."""
    (losses, tables), (losses_by_hand, by_hand) = found, control
    assert tables.keys() == by_hand.keys()
    return far(losses, losses_by_hand[-len(losses) :]), float(np.max([far(tables[n], by_hand[n]) for n in tables]))


def near(worst: dict[str, tuple[float, float]]) -> bool:
    return all(loss < PARITY and weight < PARITY for loss, weight in worst.values())


def test_every_drawn_layout_trains_as_plain_torch(
    drawn: list[Case], found: Found, control: Callable[[str, str], Control]
) -> None:
    worst = {named(c): apart(found["trained"][named(c)], control(c[0], c[2])) for c in drawn}
    assert len(worst) == len(drawn) and near(worst), worst


def test_the_catalogue_is_ranked_alike(found: Found, log: str) -> None:
    """By the first weights, at every layout; pipelines rank it where their last stage is."""
    expected = {m: retrieval.by_hand(run_of(m, Parallel(dense="ddp"), "sgd", log)) for m in MODELS if m != "pooled"}
    assert len(found["ranked"]) >= 8
    for name, values in found["ranked"].items():
        assert values == pytest.approx(expected[name.split(":")[0]], abs=1e-9), name


def test_a_resume_at_another_layout_goes_on_exactly(found: Found, control: Callable[[str, str], Control]) -> None:
    assert len(found["resumed"]) == len(MODELS) * len(RESUMED_AS)
    assert all(len(losses) == STEPS - SAVED for losses, _ in found["resumed"].values())
    worst = {n: apart(resumed, control(n.split(":")[0], "adagrad")) for n, resumed in found["resumed"].items()}
    assert near(worst), worst


def test_a_wrong_factor_on_the_tables_gradients_is_caught(found: Found, control: Callable[[str, str], Control]) -> None:
    """TorchRec divides by all ranks, of which those of a replica share one loss; losses and tables both show it."""
    far_off = {n: apart(spoiled, control(n.split(":")[0], "sgd")) for n, spoiled in found["spoiled"].items()}
    assert len(far_off) == len(MODELS) and min(min(pair) for pair in far_off.values()) > 100 * PARITY, far_off


def test_tables_are_scaled_as_the_dense_part_is_clipped(
    found: Found, control: Callable[[str, str], Control], log: str
) -> None:
    assert len(found["clipped"]) == len(CLIPPED)
    worst = {n: apart(clipped, control("sasrec", "clipped")) for n, clipped in found["clipped"].items()}
    assert near(worst), worst
    run = run_of("sasrec", Parallel(dense="ddp"), "clipped", log)
    unclipped = retrieval.plain(replace(run, sparse_optim=replace(run.sparse_optim, clip_with_dense=False)))
    assert far(unclipped, control("sasrec", "clipped")[0]) > 100 * PARITY


def count_bytes(log: str) -> tuple[int, int]:
    """Sent by this rank in a step, and what the vectors that its pipeline reads take."""
    sent = 0

    class Counting:
        @staticmethod
        def gather(mine: torch.Tensor, parts: Any, *, group: Any, group_dst: int) -> None:
            nonlocal sent
            sent += 0 if parts else mine.nbytes
            dist.gather(mine, parts, group=group, group_dst=group_dst)

        @staticmethod
        def scatter(mine: torch.Tensor, parts: Any, *, group: Any, group_src: int) -> None:
            nonlocal sent
            sent += sum(part.nbytes for part in parts[1:]) if parts else 0
            dist.scatter(mine, parts, group=group, group_src=group_src)

    run = run_of("sasrec", Parallel(pipeline=2, microbatches=2, embeddings="row_wise"), "sgd", log)
    whole = 0

    def before(step: int, replica: Replica) -> None:
        nonlocal whole
        carry.dist = Counting  # type: ignore[assignment,misc]
        longest = run.blueprint.longest
        rows = replica._rows_of_step(None)
        whole = rows * (longest["history"] + longest["item"]) * 16 * 4

    try:
        trace(run, steps=1, before_step=before)
    finally:
        carry.dist = dist
    return sent, whole


def test_a_step_moves_each_vector_once_there_and_its_gradient_once_back(log: str) -> None:
    """2 (p - 1) / p of the vectors' bytes over p stages' ranks, history and candidates: what cannot be spared."""
    ranks = in_world(2, count_bytes, log)
    whole = ranks[0][1]
    assert whole > 0 and sum(sent for sent, _ in ranks) == whole  # p = 2


class Turned(users_model.Block):
    """Gives what lies column by column, and is no view of anything."""

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        x = super().forward(*given)
        return -x.T.contiguous().T if x.dim() == 2 else x


def train_turned(cases: list[Case], log: str) -> list[Trained]:
    users_model.Block = Turned  # type: ignore[misc]
    return train_all(cases, log)


def test_what_a_stage_gives_may_lie_anyhow(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sends what lies row by row alone. Views, which its zero bubble cannot detach, every pooled model gives."""
    layout = Parallel(data=1, pipeline=2, microbatches=2, dense="ddp", embeddings="row_wise")
    cases = [("pooled", replace(layout, schedule=x), "sgd") for x in ("1f1b", "zbv_zero_bubble")]
    trained_so = in_world(2, train_turned, cases, log)[0]
    monkeypatch.setattr(users_model, "Block", Turned)
    by_hand = plain_pooled(run_of("pooled", Parallel(dense="ddp"), "sgd", log))
    worst = {named(c): apart(found, by_hand) for c, found in zip(cases, trained_so, strict=True)}
    assert len(worst) == len(cases) and near(worst), worst


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_layout_trains_as_plain_torch(log: str, control: Callable[[str, str], Control]) -> None:
    cases = list(combinations(log))
    worst = {}
    for size in (2, 4):
        of_size = [c for c in cases if world_of(c[1]) == size]
        for part in range(0, len(of_size), 24):
            some = of_size[part : part + 24]
            of_ranks = in_world(size, train_all, some, log)[0]
            worst |= {named(c): apart(found, control(c[0], c[2])) for c, found in zip(some, of_ranks, strict=True)}
    print(
        "farthest, (loss, weight):", *(max(worst.items(), key=lambda found: found[1][i]) for i in (0, 1))
    )  # pytest -s
    # Less ZeRO-3 under either zero bubble.
    assert len(worst) == len(cases) == len(MODELS) * (len(AXES) * len(WRAPS) - 2) * len(SPARSE)
    assert near(worst), {name: pair for name, pair in worst.items() if not near({name: pair})}


def train_all(cases: list[Case], log: str) -> list[Trained]:
    return [trained(case, log) for case in cases]
