"""Runs of a small ranking model on rows whose label is of their item and price."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rtrain import AUC, DLRM, GAUC
from rtrain.data.interactions import Interactions
from rtrain.data.split import ByTime
from rtrain.duration import Duration
from rtrain.mesh import Parallel
from rtrain.optim import AdamW
from rtrain.release.gate import Gate
from rtrain.release.judged import Decision, Judged
from rtrain.run import Evaluation, Handoff, Run
from rtrain.schema import Dense, Id, Schema

ROWS, USERS, ITEMS = 6000, 40, 30
SCHEMA = Schema(
    features=(Id(name="user", rows=USERS), Id(name="item", rows=ITEMS), Dense(name="price")), time="at", group="user"
)


class Nothing:
    """Asks nothing."""

    def decide(self, of: Judged) -> Decision:
        return Decision("nothing", True, "", {})


PASSES = Gate(checks=(Nothing(),))


def run_of(folder: Path, name: str, *, lr: float = 2e-2, schema: Schema = SCHEMA) -> Run:
    return Run(
        name=name, model=DLRM(dim=8, bottom=(8,), top=(16,)), storage=f"{folder}/runs",
        data=Interactions(source=f"{folder}/rows.parquet", schema=schema, split=ByTime(valid=0.1, test=0.3)),
        optim=AdamW(lr=lr), global_batch=256, duration=Duration(epochs=3), parallel=Parallel(dense="ddp"),
        evaluation=Evaluation(slices=("price",)), metrics=(AUC(), GAUC()), handoff=Handoff(rows=64),
    )  # fmt: skip


def write_rows(path: Path) -> None:
    draw = np.random.default_rng(0)
    user, item, price = draw.integers(0, USERS, ROWS), draw.integers(0, ITEMS, ROWS), draw.normal(size=ROWS)
    chance = 1 / (1 + np.exp(-(draw.normal(size=ITEMS)[item] * 1.5 + price)))
    label = (draw.random(ROWS) < chance).astype(np.int64)
    columns = {"user": user, "item": item, "price": price, "label": label, "at": np.arange(ROWS), "more": price * 2}
    pq.write_table(pa.table(columns), path / "rows.parquet", row_group_size=500)
