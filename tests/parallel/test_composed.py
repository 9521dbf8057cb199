"""Tables beside tensor and pipeline ranks and every wrapping: plain torch's losses and tables, what is found, a resume.

The models are those of `proved.PROVED`, which says how to add one's own: pooled vectors of a model that a user may
have written, histories of a row beside its candidate, and histories beside candidates of the same table, which is
read at the first stage and again at the last. `make test` trains one combination of each model, drawn by the day, and
with them every value of every axis; `make test-all` a draw of more, and with `long` all.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from rtrain.errors import ConfigError
from rtrain.mesh import ONE_STAGE_A_RANK, Parallel, lay_out
from rtrain.parity import name_of, world_of
from rtrain.run import Run
from rtrain.training.agreement import refuse
from rtrain.training.replica import Replica
from tests.parallel import test_retrieval as retrieval
from tests.parallel.plain import Control, apart, far
from tests.parallel.proved import PARITY, PROVED, SPARSE, write_data
from tests.parallel.worlds import SAVED, STEPS, Tables, in_world, train, whole_tables

DRAWN = 2
"""Combinations of each model, where the day does not draw one."""
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
OF_TABLES = {"table_wise": "sgd", "row_wise": "rowwise", "column_wise": "adagrad"}
VALUES = (*AXES, *WRAPS, *({"embeddings": tables} for tables in OF_TABLES))
# Of each pair a model has the first that it takes.
SAVED_AS = (
    Parallel(data=1, tensor=2, pipeline=2, microbatches=2, zero_stage=1, embeddings="row_wise"),
    Parallel(data=4, zero_stage=1, embeddings="row_wise"),
)
# What two stages of two tensor ranks saved goes on as two stages, and as two replicas.
RESUMED_AS = (
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=3, embeddings="column_wise"),
    Parallel(data=2, dense="ddp", embeddings="table_wise"),
)
SPOILED_AS = (
    Parallel(data=1, tensor=2, dense="ddp", embeddings="row_wise"),
    Parallel(data=2, dense="ddp", embeddings="row_wise"),
)
# Whose tables' gradients are scaled as the dense ones are clipped; the norm is known otherwise in each.
CLIPPED = (
    Parallel(data=2, zero_stage=3),
    Parallel(data=1, tensor=2, dense="ddp"),
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=1),
    Parallel(data=2, pipeline=2, microbatches=2, zero_stage=0),
)
Case = tuple[str, Parallel, str]
"""Model, layout, optimizer of the tables."""
Trained = tuple[list[float], Tables]
"""Losses of the steps, and the tables after the last."""
Found = dict[str, dict[str, Any]]


def run_of(case: Case, data: str) -> Run:
    model, layout, sparse = case
    return PROVED[model].run(layout, SPARSE[sparse], data)


def taken(model: str, layouts: tuple[Parallel, ...]) -> list[Parallel]:
    return [layout for layout in layouts if PROVED[model].takes(layout)]


def combinations(data: str, seed: str = "") -> Iterator[Case]:
    """All that are legal: every one on the axes that a model takes, but that ZeRO-3 knows no zero bubble.

    With a seed, of a third of all.
    """
    every = list(product(PROVED, AXES, WRAPS, OF_TABLES))
    for model, axes, wrap, tables in random.Random(seed).sample(every, len(every) // 3) if seed else every:
        case = model, Parallel(**axes, **wrap, embeddings=tables), OF_TABLES[tables]  # type: ignore[arg-type]
        reason = against(case, data)
        if PROVED[model].takes(case[1]):
            assert not reason or (case[1].zero_stage == 3 and "zero_stage: 3 with schedule" in reason), reason
        else:
            assert reason, f"{named(case)} is legal, but the model's row in `proved` leaves out an axis of it"
        if not reason:
            yield case


def clipped(model: str, data: str) -> list[Case]:
    """None of a model without dense weights, whose norm would clip."""
    cases = [(model, layout, "clipped") for layout in taken(model, CLIPPED)]
    reasons = {against(case, data) for case in cases}
    return [] if all("has no dense weights" in reason for reason in reasons) else cases


def against(case: Case, data: str) -> str:
    """Why rtrain refuses it; empty when it does not."""
    try:
        refuse(run_of(case, data), lay_out(case[1], world_of(case[1])))
    except ConfigError as error:
        return str(error)
    return ""


def trained(case: Case, data: str, *, stored: str = "", save_to: str = "", spoil: bool = False) -> Trained:
    kept: list[Replica] = []

    def before(step: int, replica: Replica) -> None:
        if spoil and step == 0:
            replica.carry.replica_ranks = 2 if replica.carry.replica_ranks == 1 else 1
        kept[:] = [replica]

    losses = train(run_of(case, data), save_to=save_to, load_from=stored, before_step=before)
    return losses, whole_tables(kept[0])


def everything(cases: dict[str, list[Case]], data: str, folder: str) -> Found:
    found: Found = {"trained": {}, "ranked": {}, "resumed": {}, "spoiled": {}, "clipped": {}}
    world = dist.get_world_size()
    here = {what: [case for case in of if world_of(case[1]) == world] for what, of in cases.items()}
    for case in here["trained"]:
        found["trained"][named(case)] = trained(case, data)
        if PROVED[case[0]].ranked:
            found["ranked"][named(case)] = retrieval.measured(run_of(case, data))
    for case in here["clipped"]:
        found["clipped"][named(case)] = trained(case, data)
    if world == 4:
        for model in sorted({model for model, _, _ in cases["resumed"]}):
            trained(saved_by(model), data, save_to=f"{folder}/{model}")
    for case in here["resumed"]:
        found["resumed"][named(case)] = trained(case, data, stored=f"{folder}/{case[0]}")
    for case in here["spoiled"]:
        found["spoiled"][named(case)] = trained(case, data, spoil=True)
    return found


def saved_by(model: str) -> Case:
    return model, taken(model, SAVED_AS)[0], "adagrad"


def some(cases: list[Case], models: int, shows: Callable[[Case], set[Any]], draw: random.Random) -> list[Case]:
    """A case of each of so many models, and more until all is shown that any case shows."""
    missing, found = set().union(*map(shows, cases)), list[Case]()
    names = draw.sample(sorted({model for model, _, _ in cases}), models)
    while names or missing:
        pool = [case for case in cases if case[0] == names[-1]] if names else cases
        names = names[:-1]
        new = [len(shows(case) & missing) for case in pool]
        found.append(draw.choice([case for case, count in zip(pool, new, strict=True) if count == max(new)]))
        missing -= shows(found[-1])
    return found


def named(case: Case) -> str:
    return f"{case[0]}: {name_of(case[1])}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def drawn(data: str, seed: str) -> list[Case]:
    """Of each model some, with every value of every axis: those of the day, or of the first seed that has them."""
    cases = list(combinations(data, seed))
    if seed:
        return some(cases, len(PROVED), lambda c: {n for n, x in enumerate(VALUES) if contains(c[1], x)},
                    random.Random(seed))  # fmt: skip
    of_model = [[c for c in cases if c[0] == model] for model in PROVED]
    for number in range(10_000):
        draw = random.Random(number)
        found = [c for some_of in of_model for c in draw.sample(some_of, DRAWN)]
        if covers(found):
            return found
    raise AssertionError(f"no draw of {DRAWN} combinations a model has every value of every axis")


def covers(cases: list[Case]) -> bool:
    """Every value of every axis, and of each model that is cut into stages a rank with two of them."""
    two_stages = {c[0] for c in cases if c[1].schedule not in ONE_STAGE_A_RANK}
    cut = {model for model, row in PROVED.items() if "pipeline" in row.axes}
    return two_stages == cut and all(any(contains(c[1], value) for c in cases) for value in VALUES)


def contains(layout: Parallel, value: dict[str, Any]) -> bool:
    return all(getattr(layout, field) == x for field, x in value.items())


@pytest.fixture(scope="module")
def asked(drawn: list[Case], data: str, seed: str) -> dict[str, list[Case]]:
    """All that is trained; a seed draws models and layouts, so that every layout and kind of model is there."""
    resumed = [(model, layout, "adagrad") for model in PROVED for layout in taken(model, RESUMED_AS)]
    spoiled = [(model, taken(model, SPOILED_AS)[0], "fast") for model in PROVED]
    of_clipped = [case for model in PROVED for case in clipped(model, data)]
    if seed:
        draw = random.Random(seed)
        resumed = some(resumed, 5, lambda c: {c[1], saved_by(c[0])[1]}, draw)
        spoiled = some(spoiled, 3, lambda c: {c[1], PROVED[c[0]].ranked}, draw)
        of_clipped = some(of_clipped, 6, lambda c: {c[1], PROVED[c[0]].ranked}, draw)
    return {"trained": drawn, "resumed": resumed, "spoiled": spoiled, "clipped": of_clipped}


@pytest.fixture(scope="module")
def found(asked: dict[str, list[Case]], data: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The world of four saves what the world of two resumes."""
    folder = str(tmp_path_factory.mktemp("kept"))
    parts = [in_world(n, everything, asked, data, folder)[0] for n in (4, 2)]
    return {key: parts[0][key] | parts[1][key] for key in parts[0]}


@pytest.fixture(scope="module")
def control(data: str) -> Callable[[str, str], Control]:
    known: dict[tuple[str, str], Control] = {}

    def of(model: str, sparse: str) -> Control:
        if (model, sparse) not in known:
            known[model, sparse] = PROVED[model].plain(alone(model, sparse, data))
        return known[model, sparse]

    return of


def alone(model: str, sparse: str, data: str) -> Run:
    return run_of((model, Parallel(dense="ddp"), sparse), data)


def near(worst: dict[str, tuple[float, float]]) -> bool:
    return all(loss < PARITY and weight < PARITY for loss, weight in worst.values())


def test_every_drawn_layout_trains_as_plain_torch(
    drawn: list[Case], found: Found, control: Callable[[str, str], Control]
) -> None:
    worst = {named(c): apart(found["trained"][named(c)], control(c[0], c[2])) for c in drawn}
    assert len(worst) == len(drawn) and near(worst), worst


@pytest.mark.parametrize("model", PROVED)
def test_the_control_learns(model: str, control: Callable[[str, str], Control], data: str, seed: str) -> None:
    """Beside the first weights on the same batches; by one of the tables' optimizers a day."""
    every = list(OF_TABLES.values())
    for sparse in [random.Random(f"{seed} {model}").choice(every)] if seed else every:
        run = alone(model, sparse, data)
        still = replace(run, optim=replace(run.optim, lr=1e-12), sparse_optim=replace(run.sparse_optim, lr=1e-12))
        assert np.mean(control(model, sparse)[0][-5:]) < np.mean(PROVED[model].plain(still)[0][-5:])


def test_the_catalogue_is_ranked_alike(drawn: list[Case], found: Found, data: str) -> None:
    """By the first weights, at every layout; pipelines rank it where their last stage is."""
    ranked = [model for model, row in PROVED.items() if row.ranked]
    expected = {model: retrieval.by_hand(alone(model, "sgd", data)) for model in ranked}
    assert len(found["ranked"]) == sum(c[0] in ranked for c in drawn) > 0
    for name, values in found["ranked"].items():
        assert values == pytest.approx(expected[name.split(":")[0]], abs=1e-9), name


def test_a_resume_at_another_layout_goes_on_exactly(
    asked: dict[str, list[Case]], found: Found, control: Callable[[str, str], Control]
) -> None:
    assert found["resumed"].keys() == set(map(named, asked["resumed"]))
    assert {c[1] for c in asked["resumed"]} == set(RESUMED_AS)
    assert {saved_by(c[0])[1] for c in asked["resumed"]} == set(SAVED_AS)
    assert all(len(losses) == STEPS - SAVED for losses, _ in found["resumed"].values())
    worst = {n: apart(resumed, control(n.split(":")[0], "adagrad")) for n, resumed in found["resumed"].items()}
    assert near(worst), worst


def test_a_wrong_factor_on_the_tables_gradients_is_caught(
    asked: dict[str, list[Case]], found: Found, control: Callable[[str, str], Control]
) -> None:
    """TorchRec divides by all ranks, of which those of a replica share one loss; losses and tables both show it."""
    far_off = {n: apart(spoiled, control(n.split(":")[0], "fast")) for n, spoiled in found["spoiled"].items()}
    assert len(far_off) == len(asked["spoiled"]) >= 3 and min(min(pair) for pair in far_off.values()) > 100 * PARITY, (
        far_off
    )


def test_tables_are_scaled_as_the_dense_part_is_clipped(
    asked: dict[str, list[Case]], found: Found, control: Callable[[str, str], Control], data: str
) -> None:
    assert found["clipped"].keys() == set(map(named, asked["clipped"]))
    assert {c[1] for c in asked["clipped"]} == set(CLIPPED)
    worst = {n: apart(trained_so, control(n.split(":")[0], "clipped")) for n, trained_so in found["clipped"].items()}
    assert near(worst), worst
    for model in {c[0] for c in asked["clipped"]}:
        run = alone(model, "clipped", data)
        unclipped, _ = PROVED[model].plain(replace(run, sparse_optim=replace(run.sparse_optim, clip_with_dense=False)))
        assert far(unclipped, control(model, "clipped")[0]) > 100 * PARITY, model


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_layout_trains_as_plain_torch(data: str, control: Callable[[str, str], Control]) -> None:
    cases = list(combinations(data))
    worst = {}
    for size in (2, 4):
        of_size = [c for c in cases if world_of(c[1]) == size]
        for part in range(0, len(of_size), 24):
            some = of_size[part : part + 24]
            of_ranks = in_world(size, train_all, some, data)[0]
            worst |= {named(c): apart(found, control(c[0], c[2])) for c, found in zip(some, of_ranks, strict=True)}
    print(
        "farthest, (loss, weight):", *(max(worst.items(), key=lambda found: found[1][i]) for i in (0, 1))
    )  # pytest -s
    # Less ZeRO-3 under either zero bubble.
    layouts = [tuple(a for a in AXES if row.takes(Parallel(**a))) for row in PROVED.values()]
    bubbles = sum(a.get("schedule", "").endswith("zero_bubble") for of_model in layouts for a in of_model)
    assert len(worst) == len(cases) == (sum(map(len, layouts)) * len(WRAPS) - bubbles) * len(OF_TABLES)
    assert near(worst), {name: pair for name, pair in worst.items() if not near({name: pair})}


def train_all(cases: list[Case], data: str) -> list[Trained]:
    return [trained(case, data) for case in cases]
