"""`Embedding`: vectors that were made elsewhere, among the numbers of a batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from rtrain.data.columns import concat
from rtrain.data.encode import encode
from rtrain.data.hashed import hashes
from rtrain.encodings import PiecewiseLinear
from rtrain.errors import ConfigError, DataError
from rtrain.export.request import json_schema, row_model
from rtrain.models.deepfm import DeepFM
from rtrain.models.dlrm import DLRM
from rtrain.schema import Dense, Id, Schema
from rtrain.vector import Embedding

VECTOR = Embedding(name="text", entity="item", dim=3)
SCHEMA = Schema(
    features=(
        Dense(name="price", mean=1.0, std=2.0),
        VECTOR,
        Id(name="item", rows=9),
        Dense(name="age", encoding=PiecewiseLinear(edges=(0.0, 10.0, 20.0))),
        Embedding(name="image", dim=2, missing="zeros"),
    )
)
TABLE = pa.table(
    {
        "price": [3.0, 1.0, 5.0],
        "text": pa.array([[0.1, -2, 3], [4, 5, 6], [7, 8, 9e30]], pa.list_(pa.float64(), 3)),
        "item": [1, 2, 3],
        "age": [5.0, 15.0, 30.0],
        "image": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32())),
        "label": [0, 1, 0],
    }
)
DENSE = np.array([[1, 0.1, -2, 3, 0.5, 0, 1, 2], [0, 4, 5, 6, 1, 0.5, 0, 0], [2, 7, 8, 9e30, 1, 2, 3, 4]], np.float32)


def changed(name: str, values: Any) -> pa.Table:
    return TABLE.set_column(TABLE.column_names.index(name), name, values)


def test_vectors_stand_among_the_numbers_in_the_order_of_the_schema() -> None:
    assert SCHEMA.dense_widths == (1, 3, 2, 2)
    columns = encode(TABLE, SCHEMA, label=True, where="t", first_row=0)
    np.testing.assert_array_equal(columns.batch(global_rows=3).dense.numpy(), DENSE)
    parts = [encode(TABLE[n : n + 1], SCHEMA, label=True, where="t", first_row=n) for n in range(3)]
    order = np.array([2, 0, 2, 1])
    np.testing.assert_array_equal(concat(parts).take(order, global_rows=4).dense.numpy(), DENSE[order])


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 3), pa.large_list(pa.int8()), pa.list_(pa.int64(), 3)]
)
def test_lists_of_any_numbers_and_either_length_are_read(kind: pa.DataType) -> None:
    whole = changed("text", pa.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], pa.list_(pa.float64())).cast(kind))
    dense = encode(whole, SCHEMA, label=True, where="t", first_row=0).batch(global_rows=3).dense
    assert dense[:, 1:4].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.float64(), 2), pa.list_(pa.float32())])
def test_what_is_missing_is_zeros_where_the_schema_says_so(kind: pa.DataType) -> None:
    dense = encode(changed("image", pa.nulls(3, kind)), SCHEMA, label=True, where="t", first_row=0).batch(global_rows=3)
    assert dense.dense[:, 6:].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1, 2], "feature 'text' has 2 numbers at row 71, but its dim is 3"),
        ([], "feature 'text' has 0 numbers at row 71, but its dim is 3"),
        (None, "feature 'text' is null at row 71. Give Embedding(missing=\"zeros\"), or fill the column"),
        ([1, None, 2], "feature 'text' has a null in its vector at row 71. Fill it"),
        ([1, float("nan"), 2], "feature 'text' has nan in its vector at row 71; it must have finite numbers"),
        ([1, 1e300, 2], "feature 'text' has 1e+300 in its vector at row 71; it must have finite numbers that float32"),
    ],
)
def test_a_vector_that_cannot_be_used_is_named_with_its_row(vector: Any, message: str) -> None:
    wrong = changed("text", pa.array([[1, 2, 3], vector, [1, 2, 3]], pa.list_(pa.float64())))
    with pytest.raises(DataError) as error:
        encode(wrong, SCHEMA, label=True, where="rows", first_row=70)
    assert str(error.value).startswith(f"rows: {message}") and "\n" not in str(error.value)
    Row: Any = row_model(SCHEMA)
    with pytest.raises(ValidationError, match="text"):
        Row(price=1, item=1, age=1, text=vector)


def test_columns_of_other_types_and_vectors_without_numbers_are_refused() -> None:
    for kind in (pa.float64(), pa.list_(pa.string()), pa.string()):
        with pytest.raises(DataError, match="column 'text' is .*, but the schema needs list<item: double>"):
            encode(changed("text", pa.nulls(3, kind)), SCHEMA, label=True, where="t", first_row=0)
    with pytest.raises(ConfigError, match="feature 'text': dim must be at least 1, got 0"):
        replace(VECTOR, dim=0)


def test_a_request_has_the_vector_and_may_leave_out_what_may_be_missing() -> None:
    Row: Any = row_model(SCHEMA)
    row = Row(price=3, item=1, age=5, text=[0.1, -2, 3]).model_dump()
    assert row["image"] is None
    table = pa.Table.from_pylist([row], SCHEMA.arrow(label=False))
    dense = encode(table, SCHEMA, label=False, where="request", first_row=0).batch(global_rows=1).dense
    np.testing.assert_array_equal(dense.numpy(), np.append(DENSE[0, :6], [0, 0])[None].astype(np.float32))
    told = json_schema(SCHEMA)["properties"]["text"]
    assert (told["minItems"], told["maxItems"]) == (3, 3)


@pytest.mark.parametrize("model", [DLRM(dim=8, bottom=(8,), top=(8,)), DeepFM(dim=8, deep=(8,))])
def test_models_of_numbers_read_vectors_too(model: Any) -> None:
    built = model.build(SCHEMA, seed=0)
    small = changed("text", pa.array([[0.1, -2, 3], [4, 5, 6], [7, 8, 9]], pa.list_(pa.float64())))
    columns = encode(small, SCHEMA, label=True, where="t", first_row=0)
    logits = built(columns.batch(global_rows=3))
    other = columns.batch(global_rows=3)
    other.dense[1, 2] += 1
    assert (built(other) != logits).tolist() == [False, True, False]


def test_rows_are_told_apart_by_their_vectors() -> None:
    lists = TABLE["text"].cast(pa.list_(pa.float64()))
    same = hashes(pa.table({"text": lists}))
    np.testing.assert_array_equal(hashes(pa.table({"text": TABLE["text"]})), same)
    assert len(set(same.tolist())) == 3
