"""Lists whose ids have weights: losses and tables of plain torch, at every sharding of the tables and under a pipeline.

The control multiplies rows by weights in autograd and knows no lookup of rtrain's or TorchRec's. Weights that are left
out show as 8e-3. Tolerances are those of `test_models`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from rtrain.mesh import Parallel, TableLayout
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import VECTORS, TableOptions
from rtrain.run import Run
from rtrain.schema import IdList
from rtrain.training.replica import Replica
from tests.parallel.plain import Control, apart, cross_entropy, far, plain_rows
from tests.parallel.proved import ENSEMBLE
from tests.parallel.proved import PARITY as PROVED
from tests.parallel.test_models import PARITY, SPARSE, TABLES
from tests.parallel.worlds import SCHEMA, TINY, in_world, tiny, train, whole_tables

# The mean of a list whose table another feature reads without weights, and the sum of one with a table of its own.
WEIGHTED = replace(
    SCHEMA,
    features=(
        *SCHEMA.features[:-1],
        IdList(name="seen", rows=71, table="item", max_length=4, weights="rated"),
        IdList(name="tags", rows=71, weights="rated"),
    ),
)
DLRM = replace(TINY, tables=(TableOptions(table="tags", pooling="sum"),))
ENSEMBLES = replace(ENSEMBLE, models=tuple(replace(model, tables=DLRM.tables) for model in ENSEMBLE.models))
ONE = (TableLayout(table="item", embeddings="data_parallel"),)
LAYOUTS: dict[str, tuple[RankingConfig, Parallel, str]] = {
    **{
        f"{how} {sparse}": (DLRM, Parallel(dense="ddp", embeddings=how), sparse)
        for how in ("table_wise", "row_wise", "column_wise", "data_parallel")
        for sparse in ("sgd", "adagrad")
    },
    "rowwise": (DLRM, Parallel(zero_stage=1, embeddings="row_wise", microbatches=3), "rowwise"),
    "some whole": (DLRM, Parallel(dense="ddp", embeddings="row_wise", tables=ONE), "adam"),
    "not ahead": (DLRM, Parallel(dense="ddp", embeddings="row_wise", overlap=False), "sgd"),
}
STAGES = Parallel(data=1, pipeline=2, microbatches=2, dense="ddp", embeddings="row_wise")
ALL = LAYOUTS | {"staged": (ENSEMBLES, STAGES, "sgd")}


def run_of(rows: str, config: RankingConfig, parallel: Parallel, sparse: str) -> Run:
    return tiny(rows, parallel, SPARSE[sparse], config=config, schema=WEIGHTED)


def trained(run: Run) -> tuple[list[float], Any]:
    kept: list[Replica] = []
    losses = train(run, before_step=lambda step, replica: kept.__setitem__(slice(None), [replica]))
    return losses, whole_tables(kept[0])


def all_trained(runs: dict[str, Run]) -> dict[str, Any]:
    return {name: trained(run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def weighted(rows: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The rows of `worlds`, with weights of what was seen: of either sign, a fifth of them 0."""
    draw, table = np.random.default_rng(2), pq.read_table(rows)
    seen = table["seen"].to_pylist()
    rated = [(draw.normal(size=len(ids)) * (draw.random(len(ids)) > 0.2)).tolist() for ids in seen]
    path = tmp_path_factory.mktemp("weighted") / "rows.parquet"
    more = table.append_column("tags", table["seen"]).append_column("rated", pa.array(rated))
    pq.write_table(more, path, row_group_size=70)
    return str(path)


def by_hand(run: Run) -> Callable[[Any], None]:
    """Gives a model a lookup of plain torch, of the file's own rows."""

    def change(model: Any) -> None:
        weights: dict[str, nn.Parameter] = {n.split(".")[-2]: p for n, p in model.tables.named_parameters()}
        of_table = {f.name: f.table_name for f in WEIGHTED.ids}
        rows = pq.read_table(run.data.source).to_pylist()  # type: ignore[attr-defined]

        def vectors(batch: Any) -> Tensor:
            found = []
            for number in batch.row.tolist():
                row, mine = rows[number], []
                for name in run.blueprint.features:
                    table = weights[of_table[name]]
                    if name in ("user", "item"):
                        mine.append(table[row[name]])
                        continue
                    total, sizes = torch.zeros(table.shape[1]), sum(abs(np.float32(w)) for w in row["rated"])
                    for one, weight in zip(row[name], row["rated"], strict=True):
                        share = weight / sizes if name == "seen" and sizes else weight
                        total = total + share * table[one]
                    mine.append(total)
                found.append(torch.cat(mine))
            return torch.stack(found)

        def forward(batch: Any) -> Tensor:
            model.tables.forward = lambda ids, longest=None: {VECTORS: vectors(batch)}
            return whole(batch)

        whole, model.forward = model.forward, forward

    return change


@pytest.fixture(scope="module")
def found(weighted: str) -> dict[int, dict[str, Any]]:
    of_size = {1: LAYOUTS, 2: ALL}
    return {
        size: in_world(size, all_trained, {name: run_of(weighted, *case) for name, case in cases.items()})[0]
        for size, cases in of_size.items()
    }


@pytest.fixture(scope="module")
def controls(weighted: str) -> dict[str, Control]:
    """By `control_of`."""
    made: dict[str, Control] = {}
    for name, (config, _, sparse) in ALL.items():
        if control_of(name) not in made:
            run = run_of(weighted, config, Parallel(dense="ddp"), sparse)
            made[control_of(name)] = plain_rows(run, cross_entropy, change=by_hand(run))
    return made


def control_of(layout: str) -> str:
    """Model and optimizer, which are the same under many layouts."""
    config, _, sparse = ALL[layout]
    return f"{type(config).__name__} {sparse}"


def test_sharded_is_plain_torch(found: dict[int, dict[str, Any]], controls: dict[str, Control]) -> None:
    worst = {
        f"{size} {name}": apart(of, controls[control_of(name)])
        for size, ranks in found.items()
        for name, of in ranks.items()
    }
    assert len(worst) == 2 * len(LAYOUTS) + 1
    staged = worst.pop("2 staged")
    assert max(losses for losses, _ in worst.values()) < PARITY, worst
    assert max(tables for _, tables in worst.values()) < TABLES, worst
    assert staged[0] < PROVED and staged[1] < TABLES, staged


def test_the_weights_change_what_is_learned(weighted: str, controls: dict[str, Control]) -> None:
    lists = tuple(IdList(name=f.name, rows=71, table=f.table_name, max_length=4) for f in WEIGHTED.weighted)
    bare = replace(WEIGHTED, features=(*SCHEMA.features[:-1], *lists))
    losses, _ = plain_rows(tiny(weighted, Parallel(dense="ddp"), SPARSE["sgd"], config=DLRM, schema=bare))
    assert far(losses, controls["DLRM sgd"][0]) > 1000 * PARITY  # seen here: 7.6e-3
