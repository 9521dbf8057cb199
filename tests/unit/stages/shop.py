"""A shop: a retrieval model of who bought what, a ranking model of price and hour, and what is known of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rtrain import DLRM, MF, AdamW, Dense, Duration, Evaluation, HitRate, Id, Interactions, Pairs, Run, Schema
from rtrain.data.holdout import Random, RandomPerUser
from rtrain.data.retrieval import Histories
from rtrain.models.sasrec import SASRec
from tests.unit.training.jobs import train

USERS, ITEMS = 40, 60
SCHEMA = Schema(
    features=(
        Id(name="user", rows=USERS, entity="user"),
        Id(name="item", rows=ITEMS, entity="item"),
        Dense(name="price", entity="item"),
        Dense(name="age", entity="user", missing=30.0, mean=30, std=10),
        Dense(name="hour", missing=12.0, mean=12, std=6),
    ),
    group="user",
)  # fmt: skip
SMALL = DLRM(dim=8, bottom=(8,), top=(16,))
PRICES = {item: round(0.1 * item - 3, 2) for item in range(ITEMS)}
AGES = {user: float(20 + user) for user in range(USERS)}


def retriever(folder: Path, *, histories: bool = False) -> str:
    """The export of a model that finds items."""
    draw = np.random.default_rng(0)
    rows = [(u, int(i)) for u in range(USERS) for i in draw.choice(ITEMS, size=12, replace=False)]
    user, item = (np.array(x) for x in zip(*rows, strict=True))
    columns = {"user_id": user, "item_id": item, "timestamp": 1_700_000_000 + np.arange(len(rows))}
    pq.write_table(pa.table(columns), folder / "bought.parquet")
    known: dict[str, Any] = {"source": f"{folder}/bought.parquet", "users": USERS, "items": ITEMS}
    data = Histories(length=8, **known) if histories else Pairs(split=RandomPerUser(valid=0.1, test=0.1), **known)
    return exported(
        Run(
            name="sasrec" if histories else "mf", model=SASRec(dim=8) if histories else MF(dim=8), data=data,
            global_batch=64, duration=Duration(epochs=2), storage=f"{folder}/runs",
            evaluation=Evaluation(monitor="hit_rate@5"), metrics=(HitRate(k=5),),
        )
    )  # fmt: skip


def ranker(folder: Path, schema: Schema = SCHEMA, name: str = "dlrm", model: DLRM = SMALL) -> str:
    """The export of a model that ranks."""
    draw, count = np.random.default_rng(1), 4000
    user, item = draw.integers(0, USERS, count), draw.integers(0, ITEMS, count)
    price, hour = np.array([PRICES[i] for i in item]), draw.integers(0, 24, count).astype(float)
    label = (draw.random(count) < 1 / (1 + np.exp(price - hour / 12))).astype(int)
    age = np.array([AGES[u] for u in user])
    last = [draw.integers(0, ITEMS, draw.integers(0, 4)).tolist() for _ in range(count)]
    feature = next(f for f in schema.ids if f.name == "item")
    named = [f"i{i}" for i in item] if isinstance(feature, Id) and feature.of_words else item % feature.table_rows
    columns = {"user": user, "item": named, "price": price, "age": age, "hour": hour, "last": last, "label": label}
    pq.write_table(pa.table(columns), folder / "shown.parquet", row_group_size=1000)
    data = Interactions(
        source=f"{folder}/shown.parquet", schema=schema, split=Random(valid=0.1, test=0.1), leakage="allow"
    )
    return exported(
        Run(
            name=name, model=model, data=data, optim=AdamW(lr=2e-2), global_batch=256,
            duration=Duration(epochs=2), storage=f"{folder}/runs",
        )
    )  # fmt: skip


def exported(run: Run) -> str:
    return str(train(run)["export"])
