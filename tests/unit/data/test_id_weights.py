"""Weights of a list's ids: what a batch says of each id, whatever holds it, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rtrain.batch import Batch
from rtrain.data.columns import concat
from rtrain.data.encode import encode
from rtrain.data.interactions import Interactions
from rtrain.data.side import SideFeatures
from rtrain.errors import ConfigError, DataError
from rtrain.export.request import json_schema, row_model, rows_of
from rtrain.schema import Id, IdList, IdSequence, Schema

SCHEMA = Schema(
    features=(
        Id(name="item", rows=9),
        IdList(name="tags", rows=5, weights="much"),
        IdList(name="plain", rows=5),
        IdSequence(name="seen", rows=9, table="item", max_length=2, weights="rated"),
        IdList(name="kinds", rows=5, weights="much"),  # one column of weights for both
    )
)
Row = dict[str, Any]


def some(count: int) -> list[Row]:
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        tags, seen, plain = (int(n) for n in draw.integers(0, 5, 3))
        rows.append(
            {
                "item": int(draw.integers(0, 9)),
                "tags": draw.integers(0, 5, tags).tolist(),
                "kinds": draw.integers(0, 5, tags).tolist(),
                "much": draw.normal(size=tags).tolist(),
                "plain": draw.integers(0, 5, plain).tolist(),
                "seen": draw.integers(0, 9, seen).tolist(),
                "rated": draw.normal(size=seen).tolist(),
                "label": float(draw.integers(0, 2)),
            }
        )
    return rows


def table_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA.arrow(label=True))


def batch_of(rows: list[Row]) -> Batch:
    return encode(table_of(rows), SCHEMA, label=True, where="t", first_row=0).batch(global_rows=len(rows))


def by_hand(rows: list[Row]) -> list[float]:
    """What `Jagged.weights` must hold, feature by feature and row by row."""
    found: list[float] = []
    for name, column, most in (
        ("item", "", 1),
        ("tags", "much", 9),
        ("plain", "", 9),
        ("seen", "rated", 2),
        ("kinds", "much", 9),
    ):
        for row in rows:
            ids = row[name] if isinstance(row[name], list) else [row[name]]
            found += (row[column] if column else [1.0] * len(ids))[-most:]
    return found


def assert_same(batch: Batch, rows: list[Row]) -> None:
    weights = batch.ids.weights
    assert weights is not None and weights.dtype == torch.float32 and weights.shape == batch.ids.values.shape
    assert weights.tolist() == np.array(by_hand(rows), np.float32).tolist()


@settings(deadline=None)
@given(data=st.data())
def test_each_id_has_its_weight_in_whatever_batch(data: st.DataObject) -> None:
    rows, cut = some(30), data.draw(st.integers(0, 30))
    parts = [encode(table_of(part), SCHEMA, label=True, where="t", first_row=0) for part in (rows[:cut], rows[cut:])]
    indices = np.array(data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=40)), np.int64)
    chosen = [rows[i] for i in indices]
    batch = concat(parts).take(indices, global_rows=60)
    assert_same(batch, chosen)
    assert_same(replace(batch, ids=batch.padded(50).ids.rows(0, len(chosen))), chosen)
    start = data.draw(st.integers(0, len(chosen)))
    assert_same(replace(batch, ids=batch.ids.rows(start, len(chosen))), chosen[start:])
    assert batch.padded(50).ids.weights is batch.ids.weights  # rows that pad have no id
    on_meta = batch.to(torch.device("meta")).ids.weights
    assert on_meta is not None and on_meta.shape == batch.ids.values.shape and on_meta.is_meta


def test_without_weights_there_are_none() -> None:
    schema = replace(SCHEMA, features=SCHEMA.features[:1])
    batch = encode(table_of(some(3)), schema, label=True, where="t", first_row=0).batch(global_rows=3)
    assert batch.ids.weights is None


def test_columns_of_other_types_are_read() -> None:
    bare = [{**row, "tags": [], "kinds": None, "much": None} for row in some(2)]
    for kind in (pa.null(), pa.list_(pa.null()), pa.large_list(pa.float32())):
        found = encode(replaced(bare, pa.nulls(2, kind)), SCHEMA, label=True, where="t", first_row=0).id_weights[0]
        assert found.lengths.tolist() == [0, 0] and found.values.dtype == np.float32
    whole = [{**row, "tags": [1, 2], "kinds": [1, 2], "much": None} for row in some(1)]
    for kind in (pa.list_(pa.int8()), pa.large_list(pa.float32()), pa.list_(pa.int64(), 2)):
        found = encode(replaced(whole, pa.array([[3, -2]], kind)), SCHEMA, label=True, where="t", first_row=0)
        assert found.id_weights[0].values.tolist() == [3, -2]
    assert batch_of([]).ids.weights is not None


def replaced(rows: list[Row], column: pa.Array) -> pa.Table:
    table = table_of(rows)
    return table.set_column(table.column_names.index("much"), "much", column)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "feature 'tags' has 2 ids at row 1, but 1 weights in 'much'. Give each id its own"),
        (None, "feature 'tags' has 2 ids at row 1, but 0 weights in 'much'. Give each id its own"),
        ([1.0, None], "feature 'tags': its weights 'much' have a null at row 1. Fill it, or drop the row"),
        (
            [float("nan"), 1.0],
            "feature 'tags': its weights 'much' hold nan at row 1; they must be finite numbers that float32 can hold",
        ),
        (
            [1.0, 1e39],
            "feature 'tags': its weights 'much' hold 1e+39 at row 1; they must be finite numbers that float32 can hold",
        ),
    ],
)
def test_weights_that_cannot_be_used_are_refused_with_their_row(weights: Any, said: str) -> None:
    good, bad = some(1)[0], {**some(1)[0], "tags": [1, 2], "kinds": [1, 2], "much": weights}
    with pytest.raises(DataError) as caught:
        batch_of([good, bad])
    assert str(caught.value) == f"t: {said}"


def test_a_column_of_the_wrong_kind_is_refused_before_its_rows() -> None:
    table = table_of(some(2))
    at = table.column_names.index("much")
    with pytest.raises(DataError, match="column 'much' is list<item: string>, but the schema needs list<item: double>"):
        encode(table.set_column(at, "much", pa.array([["a"], []])), SCHEMA, label=True, where="t", first_row=0)
    with pytest.raises(DataError, match="column 'much' is missing"):
        encode(table.drop_columns(["much"]), SCHEMA, label=True, where="t", first_row=0)


def test_a_column_of_weights_is_nothing_else() -> None:
    with pytest.raises(ConfigError, match="the name 'item' is used twice"):
        Schema(features=(Id(name="item", rows=9), IdList(name="tags", rows=5, weights="item")))


def test_of_retrieval_they_are_refused() -> None:
    with pytest.raises(ConfigError, match="feature 'tags' has weights, which no retrieval model reads. Leave them out"):
        SideFeatures(source="x", key="item", features=(IdList(name="tags", rows=5, weights="much"),))


def test_a_request_has_them_and_is_read_as_the_data_are(tmp_path: Path) -> None:
    stored = table_of(some(20))
    pq.write_table(stored.append_column("at", pa.array(range(20))), tmp_path / "rows.parquet")
    data = Interactions(source=str(tmp_path / "rows.parquet"), schema=replace(SCHEMA, time="at")).open()
    count = data.rows("train")
    raw = data.raw("train", 0, count)
    asked = [row_model(SCHEMA)(**row).model_dump() for row in rows_of(raw, SCHEMA)]
    request = pa.Table.from_pylist(asked, SCHEMA.arrow(label=False))
    served = encode(request, SCHEMA, label=False, where="request", first_row=0).batch(global_rows=count)
    reader = data.reader("train", global_batch=count, seed=0, rank=0, world_size=1)
    trained = next(iter(reader))[0]
    reader.close()
    rows = some(20)
    assert_same(served, rows[:count])
    assert_same(trained, [rows[number] for number in trained.row.tolist()])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "tags has 2 ids, but much has 1 weights"),
        ([1.0, float("inf")], "finite number"),
        ([1.0, 1e39], "less than or equal to"),
        ([1.0, None], "valid number"),
    ],
)
def test_a_request_that_encoding_would_refuse_is_refused_alone(weights: Any, said: str) -> None:
    row = {name: value for name, value in some(1)[0].items() if name != "label"}
    row |= {"tags": [1, 2], "kinds": [1, 2], "much": weights}
    with pytest.raises(ValidationError, match=said):
        row_model(SCHEMA)(**row)


def test_the_json_schema_says_what_they_are() -> None:
    found = json_schema(SCHEMA)["properties"]
    assert found["rated"]["description"] == "the weight of each id of seen, as many"
    assert found["much"]["description"] == "the weight of each id of tags, kinds, as many"
    flat, nested, _ = found["much"]["anyOf"]
    assert flat["items"]["type"] == "number" and nested["items"] == flat
