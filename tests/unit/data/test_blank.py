"""What a batch is counted as before data are opened, beside the batches that they give: none of those is larger."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from rtrain.data.cursor import Cursor
from rtrain.data.negatives import Negatives
from rtrain.data.protocol import NotCounted
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.data.side import Bins, SideFeatures
from rtrain.data.words import Words
from rtrain.rounding import ceil_div
from rtrain.schema import Id, IdList

USERS, ITEMS, ROWS, LONGEST = 64, 60, 16, 6
KNOWN, POPULAR = Negatives(count=0), Negatives(count=2, by="popularity", known=True)
TIGHT = 0.7
"""Least share of a bound that some batch's target had: none has all items among its positives, as is assumed."""
WORDS = IdList(name="words", rows=9, max_length=4)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Users who had everything, and some who had one item 40 times."""
    draw = np.random.default_rng(0)
    had = [
        (user, item) for user in range(USERS) for item in ([*range(ITEMS)] if user % 3 else [user % 9] * 40 + [1, 2])
    ]
    users, items = np.array(had)[draw.permutation(len(had))].T
    times = np.arange(len(had))
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), tmp_path / "log.parquet")
    known = [
        {"id": n, "kind": n % 5, "words": [*range(n % 5)], "age": n, "title": "so many words " * (n % 3)}
        for n in range(USERS)
    ]
    for of, count in (("user", USERS), ("item", ITEMS)):
        pq.write_table(pa.Table.from_pylist(known[:count]), tmp_path / f"{of}.parquet")
    return str(tmp_path)


def data(folder: str, kind: str, negatives: Negatives, **more: Any) -> Pairs | Histories:
    given: dict[str, Any] = {"source": f"{folder}/log.parquet", "users": USERS, "items": ITEMS, "leakage": "allow"}
    given |= {"negatives": negatives, "hide_seen": False, **more}
    return Histories(**given, length=LONGEST) if kind == "histories" else Pairs(**given)


def side(folder: str, of: str, *features: Any) -> SideFeatures:
    return SideFeatures(source=f"{folder}/{of}.parquet", key="id", features=features)


def sizes(batch: RetrievalBatch) -> dict[str, int]:
    """Elements of each tensor."""
    found = {"ids": batch.ids.values, "lengths": batch.ids.lengths, **batch.places}
    found |= {name: x for name, x in vars(batch).items() if isinstance(x, Tensor)}
    return {name: x.numel() for name, x in found.items()}


def given(of: Pairs | Histories, rank: int, world: int) -> Iterator[RetrievalBatch]:
    """Batches of an epoch."""
    opened = of.open()
    start, stop = opened.ranges["train"]
    reader = opened.reader("train", global_batch=ROWS, seed=5, rank=rank, world_size=world, cursor=Cursor())
    yield from (batch for batch, _ in islice(reader, min(40, ceil_div(stop - start, ROWS))))
    reader.close()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("negatives", [Negatives(count=3), KNOWN, POPULAR, Negatives(by="all")])
@pytest.mark.parametrize("kind", ["pairs", "histories", "features"])
def test_no_batch_is_larger_than_its_blank(kind: str, negatives: Negatives, world: int, log: str) -> None:
    if kind == "histories" and negatives.by == "all":
        return  # not counted, below
    more: dict[str, Any] = {}
    if kind == "features":
        features = (Id(name="kind", rows=5), WORDS, Bins(name="age", edges=(9.0,)))
        more["user_features"] = side(log, "user", *features)
        more["item_features"] = side(log, "item", *features, Words(name="title", rows=99, longest=5))
    of = data(log, kind, negatives, **more)
    blank = of.blank(ROWS // world, ROWS)
    most = sizes(blank)
    met, full, exact = 0, 0, kind == "pairs" and not negatives.tells_known
    for rank in range(world):
        for batch in given(of, rank, world):
            found = sizes(batch)
            assert found.keys() == most.keys() and batch.ids.keys == blank.ids.keys
            assert all(found[name] <= most[name] for name in most), (found, most)
            assert batch.units <= blank.units
            assert not exact or found == most or batch.rows < blank.rows
            full += batch.rows == blank.rows
            met = max(met, found["target"])
    assert full and met >= TIGHT * most["target"]


@pytest.mark.parametrize(
    ("kind", "negatives", "features", "said"),
    [
        (Graph, Negatives(), {}, "data: a graph.s size only open data tell. Give data.edges"),
        (Histories, Negatives(by="all"), {}, "data.negatives.by: 'all' deals every item to the positions"),
        (Pairs, KNOWN, {"item_features": IdList(name="tags", rows=9)}, "data.item_features: 'tags' is a list of any"),
        (Pairs, KNOWN, {"user_features": IdList(name="tags", rows=9)}, "'tags' is a list of any length. Give it a max"),
    ],
)
def test_what_only_open_data_tell_is_not_counted(kind: Any, negatives: Negatives, features: Any, said: str) -> None:
    more = {of: SideFeatures(source="nowhere", key="id", features=(one,)) for of, one in features.items()}
    with pytest.raises(NotCounted, match=said):
        kind(source="nowhere", users=USERS, items=ITEMS, negatives=negatives, **more).blank(4, 8)
