"""Lists of lists: every batch has the bits of the same rows as one list each, and what nests otherwise is refused."""

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

from rtrain.data.boosted import _column
from rtrain.data.columns import Columns
from rtrain.data.encode import encode
from rtrain.data.interactions import Interactions
from rtrain.data.nested import one_list
from rtrain.data.side import SideFeatures
from rtrain.errors import DataError
from rtrain.export.request import json_schema, row_model, rows_of
from rtrain.schema import IdList, IdSequence, Schema
from rtrain.starter.guess import columns
from rtrain.vector import Embedding

SCHEMA = Schema(
    features=(
        IdList(name="tags", rows=9, weights="much"),
        IdSequence(name="seen", rows=9, max_length=3, times="had", weights="rated"),
        IdList(name="words", vocabulary=("a", "b")),
        IdSequence(name="keys", rows=50, hashed="numbers", max_length=2),
    ),
    time="at",
)
Row: Any = row_model(SCHEMA)
LISTS = ("tags", "much", "seen", "had", "rated", "words", "keys")
OF = {"tags": pa.int32(), "much": pa.float32(), "seen": pa.int64(), "had": pa.timestamp("us"), "rated": pa.int8()}
OF |= {"words": pa.string(), "keys": pa.int64()}
SAME = (("tags", "much"), ("seen", "had", "rated"), ("words",), ("keys",))
"""Columns that nest alike."""


def flat(value: Any) -> Any:
    """By plain recursion; a null row stays null."""
    if not isinstance(value, list):
        return value
    inner = [flat(x) for x in value if x is not None]
    return [x for part in inner for x in (part if isinstance(part, list) else [part])]


@st.composite
def nests(draw: st.DrawFn) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Of each column how deep its lists are, and rows."""
    number = st.integers(0, 8)
    deep, rows = dict[str, int](), [dict[str, Any](at=100, label=1.0) for _ in range(draw(st.integers(0, 5)))]
    for together in SAME:
        depth = draw(st.integers(1, 3))
        deep |= dict.fromkeys(together, depth)
        lists: Any = number
        for level in range(depth):
            lists = st.lists(lists, max_size=3) if level == 0 else st.lists(st.none() | lists, max_size=3)
        for row in rows:
            row |= dict.fromkeys(together, draw(st.none() | lists))
    for row in rows:
        row["words"] = mapped(row["words"], lambda n: "abc"[n % 3])
        row["had"] = mapped(row["had"], lambda n: 42_000_000)
    return deep, rows


def mapped(value: Any, change: Any) -> Any:
    if value is None:
        return None
    return [mapped(x, change) for x in value] if isinstance(value, list) else change(value)


def table_of(rows: list[dict[str, Any]], deep: dict[str, int], kind: Any = pa.list_) -> pa.Table:
    fields = [pa.field("at", pa.int64()), pa.field("label", pa.float64())]
    for name in LISTS:
        of = OF[name]
        for _ in range(deep[name]):
            of = kind(of)
        fields.append(pa.field(name, of))
    return pa.Table.from_pylist(rows, pa.schema(fields))


def encoded(table: pa.Table) -> Columns:
    return encode(table, SCHEMA, label=True, where="t", first_row=0)


def assert_same(one: Columns, other: Columns) -> None:
    ours, theirs = (each.batch(global_rows=max(1, each.rows)) for each in (one, other))
    assert ours.ids.weights is not None and theirs.ids.weights is not None
    for mine, its in (
        (ours.ids.values, theirs.ids.values),
        (ours.ids.lengths, theirs.ids.lengths),
        (ours.ids.weights, theirs.ids.weights),
        (ours.times["seen"], theirs.times["seen"]),
    ):
        assert mine.dtype == its.dtype and torch.equal(mine, its)


@settings(deadline=None, max_examples=100)
@given(drawn=nests(), kind=st.sampled_from([pa.list_, pa.large_list]), data=st.data())
def test_a_batch_is_that_of_one_list_a_row(drawn: Any, kind: Any, data: st.DataObject) -> None:
    deep, rows = drawn
    plain = [{name: flat(value) for name, value in row.items()} for row in rows]
    expected = encoded(table_of(plain, dict.fromkeys(LISTS, 1)))
    table = table_of(rows, deep, kind)
    assert_same(encoded(table), expected)
    cut = data.draw(st.integers(0, len(rows)))  # slices, and several chunks
    assert_same(encoded(pa.concat_tables([table[:cut], table[cut:]])), expected)
    assert_same(encoded(table[cut:]), encoded(table_of(plain[cut:], dict.fromkeys(LISTS, 1))))
    asked = [Row(**row).model_dump() for row in rows_of(table, SCHEMA)]
    request = pa.Table.from_pylist(asked, SCHEMA.arrow(label=False))
    served = encode(request, SCHEMA, label=False, where="request", first_row=0)
    assert_same(served, expected)


def test_lists_of_a_fixed_length_and_flat_columns() -> None:
    fixed = pa.chunked_array([pa.array([[[1, 2], [3, 4]], None, [[5, 6], None]], pa.list_(pa.list_(pa.int64(), 2), 2))])
    assert one_list(fixed).to_pylist() == [[1, 2, 3, 4], None, [5, 6]]
    assert one_list(fixed[1:]).to_pylist() == [None, [5, 6]]
    column = pa.chunked_array([[[1], None]], pa.list_(pa.int64()))
    assert one_list(column) is column
    empty = pa.chunked_array([], pa.list_(pa.list_(pa.string())))
    assert one_list(empty).type == pa.large_list(pa.string()) and not len(one_list(empty))
    nothing = pa.chunked_array([[[[], None], None]], pa.list_(pa.list_(pa.null())))
    assert one_list(nothing).to_pylist() == [[], None]


GOOD = {"at": 100, "label": 1.0, "words": [], "keys": []}
GOOD |= {"tags": [[1, 2], [3]], "much": [[1.0, 2.0], [3.0]], "seen": [[4], [5]], "had": [[1], [2]], "rated": [[1], [2]]}
DEEP = dict.fromkeys(LISTS, 2) | {"words": 1, "keys": 1}


@pytest.mark.parametrize(
    ("change", "deep", "said"),
    [
        (
            {"much": [[1.0], [2.0, 3.0]]},
            {},
            "feature 'tags' has 2 ids in inner list 0 at row 1, but 1 weights in 'much'. Let both nest alike",
        ),
        (
            {"tags": [[1], None, [2]], "much": [[1.0], [2.0], []]},
            {},
            "feature 'tags' has 0 ids in inner list 1 at row 1, but 1 weights in 'much'. Let both nest alike",
        ),
        (
            {"much": [[1.0, 2.0, 3.0]]},
            {},
            "feature 'tags' has 2 inner lists at row 1, but 1 inner lists in 'much'. Let both nest alike",
        ),
        (
            {"much": [1.0, 2.0, 3.0]},
            {"much": 1},
            "feature 'tags': 'much', its weights, nests otherwise than the ids at row 0. Let both nest alike",
        ),
        (
            {"had": [[1, 2], []]},
            {},
            "feature 'seen' has 1 ids in inner list 0 at row 1, but 2 times in 'had'. Let both nest alike",
        ),
        ({"had": [[2_000_000], [1_000_000]]}, {}, "feature 'seen': its times 'had' fall from 2 to 1 at row 1; they"),
        ({"tags": [[1, None], [3]]}, {}, "feature 'tags' has a null in its list at row 1. Fill it, or drop the row"),
        ({"tags": [[1, 2], [9]]}, {}, "feature 'tags' has id 9 at row 1, but table 'tags' has rows=9"),
        ({"much": [[1.0, 2.0], [None]]}, {}, "feature 'tags': its weights 'much' have a null at row 1"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_row(change: dict[str, Any], deep: dict[str, int], said: str) -> None:
    good = GOOD | ({"much": [1.0, 2.0]} if deep else {})
    with pytest.raises(DataError) as caught:
        encoded(table_of([good, GOOD | change], DEEP | deep))
    assert str(caught.value).startswith(f"t: {said}")


def test_columns_that_are_empty_nest_as_one_likes() -> None:
    rows = [GOOD | {"tags": [[], []], "much": None}, GOOD | {"tags": None, "much": None}]
    with pytest.raises(DataError, match="feature 'tags' has 2 inner lists at row 0, but 0 weights in 'much'"):
        encoded(table_of(rows, DEEP | {"much": 1}))
    assert encoded(table_of(rows[1:], DEEP | {"much": 1})).id_weights[0].lengths.tolist() == [0]


def test_a_list_is_as_long_as_all_its_inner_ones() -> None:
    schema = Schema(features=(IdList(name="tags", rows=9, max_length=2),))
    with pytest.raises(DataError, match="feature 'tags' has 3 values at row 0, more than its max_length=2"):
        encode(pa.table({"tags": [[[1, 2], [3]]]}), schema, label=False, where="t", first_row=0)


def test_inner_values_are_of_the_kinds_that_they_were() -> None:
    schema = Schema(features=(IdList(name="tags", rows=9),))
    with pytest.raises(DataError, match="column 'tags' is list<.*list<.*double>> *, but the schema needs list<"):
        encode(pa.table({"tags": [[[1.5]]]}), schema, label=False, where="t", first_row=0)
    vector = Schema(features=(Embedding(name="v", dim=2),))
    with pytest.raises(DataError, match="column 'v' is list<"):
        encode(pa.table({"v": [[[1.0, 2.0]]]}), vector, label=False, where="t", first_row=0)


def test_files_and_side_features_have_them(tmp_path: Path) -> None:
    nested, plain = [[[1], [2, 3]], None, [[], None]], [[1, 2, 3], None, []]
    found = []
    for lists in (nested, plain):
        pq.write_table(pa.table({"id": [2, 0, 1], "tags": lists}), tmp_path / "side.parquet")
        side = SideFeatures(
            source=str(tmp_path / "side.parquet"), key="id", features=(IdList(name="tags", rows=9),)
        ).open(np.array([0, 1, 2]), rows=3, of="user")["tags"]
        found.append((side.values.tolist(), side.lengths.tolist()))
        rows = pa.table({"tags": lists * 10, "at": range(30), "label": [0.0] * 30, "user": [1] * 30})
        pq.write_table(rows, tmp_path / "rows.parquet")
        schema = Schema(features=(IdList(name="tags", rows=9),), time="at")
        data = Interactions(source=str(tmp_path / "rows.parquet"), schema=schema).open()
        data.refuse_rows()
        reader = data.reader("train", global_batch=16, seed=0, rank=0, world_size=1)
        batch, _ = next(iter(reader))
        reader.close()
        found.append((batch.ids.values.tolist(), batch.ids.lengths.tolist()))
    assert found[:2] == found[2:] and found[0] == ([1, 2, 3], [0, 0, 3])


def test_a_request_may_nest() -> None:
    nested = {name: value for name, value in GOOD.items() if name != "label"}
    asked = Row(**nested).model_dump()
    assert asked["tags"] == [1, 2, 3] and asked["much"] == [1.0, 2.0, 3.0] and asked["had"] == [1, 2]
    assert Row(**nested | {"tags": [[[1], None], [[2, 3]]], "much": [[[1.0], None], [[2.0, 3.0]]]}).tags == [1, 2, 3]
    assert Row(at=1, keys=[[1], None, [2]]).keys == [1, 2] and Row(at=1, words=[["a"], []]).words == ["a"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tags": [[1], [2, 3]]}, "much nests otherwise than tags. Let both nest alike"),
        ({"much": [1.0, 2.0, 3.0]}, "much nests otherwise than tags. Let both nest alike"),
        ({"had": [[1, 2], []]}, "had nests otherwise than seen. Let both nest alike"),
        ({"tags": [[1, 2], [9]]}, "Input should be less than 9"),
        ({"words": [["a"], "b"]}, "Input should be a valid string"),
        ({"tags": [[1, None], [3]]}, "Input should be a valid integer"),
        ({"tags": [[1, 2], [3], [4]], "much": None}, "tags has 4 ids, but much has 0 weights"),
    ],
)
def test_a_request_that_nests_otherwise_is_refused_alone(change: dict[str, Any], said: str) -> None:
    row = {name: value for name, value in GOOD.items() if name != "label"}
    with pytest.raises(ValidationError, match=said):
        Row(**row | change)


def test_the_json_schema_tells_of_them() -> None:
    flat, nested, null = json_schema(SCHEMA)["properties"]["words"]["anyOf"]
    assert (flat["type"], flat["items"], null) == ("array", {"type": "string"}, {"type": "null"})
    # Not a mixture of both, which is refused.
    assert nested == {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}


def test_a_starter_guesses_what_inner_lists_hold() -> None:
    class Given:
        schema = pa.schema([("tags", pa.list_(pa.list_(pa.int64())))])

        def column(self, name: str) -> pa.ChunkedArray:
            return pa.chunked_array([[[[1], [4]], None]], self.schema.field(name).type)

    (found,) = columns(Given(), {})  # type: ignore[arg-type]
    assert (found.kind, found.options) == ("IdList", (("rows", "5"),))


def test_trees_read_how_long_the_whole_is() -> None:
    table = pa.table({"tags": pa.array([[[1], [2, 3]], None, [[], None]])})
    found = _column(IdList(name="tags", rows=9), table, SCHEMA)
    assert np.array_equal(found, [3, np.nan, 0], equal_nan=True)
