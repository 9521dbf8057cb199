"""Managed tables at every sharding, against a dict of values and whole tables in one process; resumed, exported.

Few rows and many values: at each ranking most rows change hands.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torch import Tensor

from rtrain import DIN, DLRM, SGD, Adagrad, Adam, Managed, RowWiseAdagrad, Schema
from rtrain.batch import Batch
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data.hashed import into_keys
from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor, export
from rtrain.mesh import Parallel, TableLayout, lay_out
from rtrain.nn.tables import TableOptions, initial_rows
from rtrain.optim import SparseOptim
from rtrain.run import Run
from rtrain.schema import Dense, Id, IdList, IdSequence
from rtrain.training.agreement import refuse
from rtrain.training.replica import Replica
from rtrain.training.world import join, leave
from tests.parallel.plain import Control, far, plain_rows
from tests.parallel.worlds import SAVED, STEPS, TINY, Tables, in_world, tiny, train, whole_tables

PARITY = 1e-6
USERS, ITEMS = Managed(every=3, decay=0.2), Managed(every=4, decay=0.3, least=2)
USER_ROWS, ITEM_ROWS = 13, 22


def schema_of(items: type[IdList]) -> Schema:
    return Schema(
        features=(
            Dense(name="a"),
            Id(name="user", rows=USER_ROWS, hashed="numbers", managed=USERS),
            Id(name="item", rows=ITEM_ROWS, hashed="numbers", managed=ITEMS),
            items(name="seen", rows=ITEM_ROWS, hashed="numbers", managed=ITEMS, table="item", max_length=4),
        ),
        group="user",
        time="at",
    )


MODELS = {
    "dlrm": (replace(TINY, first_order=True), schema_of(IdList)),
    "din": (DIN(dim=8, history="seen", candidate="item", attention=(8,), top=(16,)), schema_of(IdSequence)),
}
SPARSE: dict[str, SparseOptim] = {
    "sgd": SGD(lr=1.0),
    "adagrad": Adagrad(lr=0.05, eps=1e-4),
    "rowwise": RowWiseAdagrad(lr=0.2, eps=1e-4),
    "rowwise l2": RowWiseAdagrad(lr=0.2, eps=1e-4, l2=0.01),
    "adam": Adam(lr=1e-3, eps=1e-4),
}
LAYOUTS = [
    *((how, sparse) for how in ("table_wise", "row_wise") for sparse in SPARSE),
    ("column_wise", "sgd"),
    ("column_wise", "adagrad"),
]


def run_of(rows: str, model: str, how: str, sparse: str, **parallel: Any) -> Run:
    config, schema = MODELS[model]
    layout = Parallel(dense="ddp", embeddings=how, **parallel)  # type: ignore[arg-type]
    return tiny(rows, layout, SPARSE[sparse], config=config, schema=schema)


Trained = tuple[list[float], Tables, dict[str, list[int]]]


def trained(run: Run, **arguments: Any) -> Trained:
    """Losses; tables and which value has which row before the last step."""
    found: list[Any] = []

    def before(step: int, replica: Replica) -> None:
        if step == STEPS - 1:
            assert replica.tables is not None and replica.tables.turnover is not None
            ids = replica.tables.turnover.ids
            found.extend([whole_tables_of(replica), {name: ids.keys_of(name).tolist() for name in ids.features}])

    return train(run, before_step=before, **arguments), found[0], found[1]


def whole_tables_of(replica: Replica) -> Tables:
    """Of the tables alone; `chunks` has the maps as well, of which one rank has each."""
    assert replica.tables is not None
    turnover, replica.tables.turnover = replica.tables.turnover, None
    try:
        return whole_tables(replica)
    finally:
        replica.tables.turnover = turnover


def chosen(model: str, size: int, seed: str) -> list[tuple[str, str]]:
    """What a world trains: of two ranks all, of one what the others are held against, of four a draw."""
    if size == 2 or not seed:
        return LAYOUTS
    draw = random.Random(f"{seed} {model}").sample(LAYOUTS, 3)
    drawn = {1: [of for of in LAYOUTS if of[0] == "table_wise"], 4: draw}[size]
    return [of for of in LAYOUTS if of in drawn or of == ("row_wise", "adagrad")]


def gone_on_at(model: str, size: int, seed: str) -> list[tuple[str, str]]:
    """Where a world goes on."""
    return random.Random(f"{seed} {model} {size}").sample(LAYOUTS, 4) if seed else LAYOUTS


def everything(rows: str, folder: str, size: int, seed: str) -> dict[str, Trained]:
    found = {}
    for model in MODELS:
        for how, sparse in chosen(model, size, seed):
            saves = {"save_to": f"{folder}/{model} {sparse}"} if (size, how) == (2, "row_wise") else {}
            found[f"{model} {how} {sparse}"] = trained(run_of(rows, model, how, sparse), **saves)
        plain = run_of(rows, model, "row_wise", "adagrad", overlap=False)
        found[f"{model} without overlap"] = trained(plain)
    return found


def resumed(rows: str, folder: str, size: int, seed: str) -> dict[str, Trained]:
    """Of what two ranks saved in the middle of a ranking's steps."""
    return {
        f"{model} {how} {sparse}": trained(run_of(rows, model, how, sparse), load_from=f"{folder}/{model} {sparse}")
        for model in MODELS
        for how, sparse in gone_on_at(model, size, seed)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("managed")


@pytest.fixture(scope="module")
def found(rows: str, folder: Path, seed: str) -> dict[int, dict[str, Trained]]:
    return {size: in_world(size, everything, rows, str(folder), size, seed)[0] for size in (2, 1, 4)}


@pytest.fixture(scope="module")
def gone_on(rows: str, folder: Path, found: Any, seed: str) -> dict[int, dict[str, Trained]]:
    return {size: in_world(size, resumed, rows, str(folder), size, seed)[0] for size in (1, 2, 4)}


class Dicts:
    """What is meant by a managed table, value by value."""

    def __init__(self, rows: int, how: Managed, features: tuple[str, ...]):
        self.rows, self.how, self.features = rows, how, features
        self.row: dict[int, int] = {}
        self.score: dict[int, float] = {}
        self.seen: Counter[int] = Counter()

    def saw(self, batch: Batch) -> None:
        at = 0
        for key, count in zip(batch.ids.keys, batch.ids.per_key, strict=True):
            if key in self.features:
                self.seen.update(batch.ids.values[at : at + count].tolist())
            at += count

    def turn(self) -> list[int]:
        """Rows that were taken from another value."""
        taken = []
        for value in self.row:
            self.score[value] = self.score[value] * self.how.decay + self.seen[value]
        news = sorted((-count, value) for value, count in self.seen.items() if value not in self.row)
        for count, value in ((-less, value) for less, value in news if -less >= self.how.least):
            if len(self.row) < self.rows - 1:
                self.row[value] = len(self.row) + 1
            else:
                worst = min(self.row, key=lambda other: (self.score[other], -self.row[other]))
                if count <= self.score[worst]:
                    break
                self.row[value] = self.row.pop(worst)
                taken.append(self.row[value])
            self.score[value] = float(count)
        self.seen.clear()
        return taken


def control(rows: str, model: str, sparse: str) -> tuple[Control, dict[str, Dicts], int]:
    """Losses and tables of all but the last step, the maps then, and how many rows changed hands on the way."""
    run = run_of(rows, model, "table_wise", sparse)
    maps = {"user": Dicts(USER_ROWS, USERS, ("user",)), "item": Dicts(ITEM_ROWS, ITEMS, ("item", "seen"))}
    turned = 0

    def between(of: Any, step: int, batch: Batch, tables: Mapping[str, Tensor], states: Mapping[str, Tensor]) -> None:
        nonlocal turned
        for name, one in maps.items():
            if step and step % one.how.every == 0:
                taken = one.turn()
                turned += len(taken)
                for table in (t for t in run.blueprint.tables if t.name in (name, f"{name}_first")):
                    fresh = initial_rows(table, run.seed, 0, table.rows)
                    tables[f"{table.path}.weight"][taken] = fresh[taken]
                    states[f"{table.path}.weight"][taken] = 0
                keys = of.tables.managed.keys_of(name)
                keys[1:] = 0
                for value, row in one.row.items():
                    keys[row] = value
                of.tables.managed.settle()
            one.saw(batch)

    return plain_rows(run, steps=STEPS - 1, between=between), maps, turned


@pytest.mark.parametrize("sparse", [name for name in SPARSE if name != "adam"])
@pytest.mark.parametrize("model", MODELS)
def test_sharded_is_a_dict_and_whole_tables(model: str, sparse: str, rows: str, found: Any, seed: str) -> None:
    (losses, weights), maps, turned = control(rows, model, sparse)
    assert turned > 30
    for size, of_size in found.items():
        for how in [how for how, of in chosen(model, size, seed) if of == sparse]:
            mine, tables, keys = of_size[f"{model} {how} {sparse}"]
            for name, one in maps.items():
                assert {value: row for row, value in enumerate(keys[name]) if value} == one.row, (size, how)
            assert far(mine[: STEPS - 1], losses) < PARITY, (size, how)
            assert max(far(tables[name], weights[name]) for name in weights) < 1e-5, (size, how)


@pytest.mark.parametrize("model", MODELS)
def test_layouts_agree(model: str, found: Any, seed: str) -> None:
    """With Adam, which the control leaves out; and ids do not travel ahead into a map that is about to change."""
    for sparse in SPARSE:
        alone = found[1][f"{model} table_wise {sparse}"]
        for size, of_size in found.items():
            for how in [how for how, of in chosen(model, size, seed) if of == sparse]:
                mine = of_size[f"{model} {how} {sparse}"]
                assert far(mine[0], alone[0]) < PARITY, (size, how, sparse)
                assert mine[2] == alone[2], (size, how, sparse)
            if sparse == "adagrad":
                assert of_size[f"{model} without overlap"] == of_size[f"{model} row_wise adagrad"], size


@pytest.mark.parametrize("model", MODELS)
def test_any_layout_goes_on(model: str, found: Any, gone_on: Any, seed: str) -> None:
    """Saved one step behind a ranking of one table and two behind the other's: what was seen since is not forgotten."""
    for size, of_size in gone_on.items():
        for how, sparse in gone_on_at(model, size, seed):
            losses, _, keys = of_size[f"{model} {how} {sparse}"]
            wanted = found[2][f"{model} row_wise {sparse}"]
            assert far(losses, wanted[0][SAVED:]) < PARITY, (size, how, sparse)
            assert keys == wanted[2], (size, how, sparse)


@pytest.mark.parametrize("model", MODELS)
def test_an_export_has_the_map(model: str, rows: str, folder: Path, found: Any) -> None:
    config, schema = MODELS[model]
    stored, uri = Stored(CheckpointFolders(str(folder / f"{model} adagrad")).of(SAVED), SAVED), str(folder / model)
    export(config, schema, stored, uri, run="r", metrics={})
    predictor = Predictor(uri)
    keys = stored.tensor("model.tables.managed.keys_user")
    users = pq.read_table(rows, columns=["user"])["user"]
    known = {user: key in keys for user, key in zip(users.to_pylist(), into_keys(users).tolist(), strict=True)}
    here, gone = (next(user for user, there in known.items() if there is which) for which in (True, False))

    def answer(user: int) -> Any:
        return predictor.predict([{"a": 0.5, "user": user, "item": 3, "seen": [1, 2]}])[0]

    assert answer(gone) == answer(-(2**62)) != answer(here)
    run = run_of(rows, model, "table_wise", "adagrad")
    world = join(gpu=False, timeout_s=60)
    try:
        mesh = lay_out(Parallel(data=1), 1)
        replica = Replica(run, mesh, world, stored=stored, training=False)
        batch = next(iter(run.data.open().reader("train", global_batch=99, seed=0, rank=0, world_size=1)))[0]
        wanted = replica.predict(batch)
    finally:
        leave()
    assert wanted is not None
    raw = pq.read_table(rows).take(batch.row.numpy()).select(["a", "user", "item", "seen"]).to_pylist()
    assert far(predictor.predict(raw), wanted.tolist()) < PARITY


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel": Parallel(dense="ddp", embeddings="data_parallel")}, "managed, which no data_parallel table"),
        (
            {
                "parallel": Parallel(
                    dense="ddp", tables=(TableLayout(table="user", embeddings="row_wise", kernel="fused_uvm"),)
                )
            },
            "rows that begin again are written where the weights lie",
        ),
        ({"model": DLRM(dim=8, tables=(TableOptions(table="user", vectors="/v.parquet"),))}, "Leave them out"),
    ],
)
def test_what_it_does_not_go_with(changes: dict[str, Any], words: str, rows: str) -> None:
    run = replace(run_of(rows, "dlrm", "row_wise", "sgd"), **changes)
    with pytest.raises(ConfigError, match=words):
        refuse(replace(run, cluster=replace(run.cluster, gpus_per_worker=1)), lay_out(run.parallel, 2))
