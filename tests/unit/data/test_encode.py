from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtrain.batch import Batch
from rtrain.data.columns import Columns, concat
from rtrain.data.encode import encode
from rtrain.errors import DataError
from rtrain.schema import Dense, Id, IdList, IdSequence, Label, Schema

Make = Callable[..., pa.Table]


def by_hand(rows: list[dict[str, Any]], numbers: list[int], schema: Schema, *, label: bool = True) -> dict[str, Any]:
    """What a batch of these rows must hold, value by value in plain Python."""
    dense = [
        [((f.missing if row[f.name] is None else row[f.name]) - f.mean) / f.std for f in schema.dense] for row in rows
    ]
    values: list[int] = []
    lengths: list[int] = []
    for feature in schema.ids:
        for row in rows:
            found = row[feature.name]
            if isinstance(feature, IdSequence):
                found = (found or [])[-feature.max_length :]
            elif isinstance(feature, IdList):
                found = found or []
            else:
                found = [found]
            words = {w: i + 1 for i, w in enumerate(feature.vocabulary)}
            values += [words.get(x, 0) if words else x for x in found]
            lengths.append(len(found))
    return {
        "dense": torch.tensor(dense, dtype=torch.float64).reshape(len(rows), len(schema.dense)).float(),
        "values": torch.tensor(values, dtype=torch.int64),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "label": torch.tensor([row[schema.label.name] if label else 0.0 for row in rows], dtype=torch.float32),
        "group": torch.tensor([row[schema.group] if schema.group else 0 for row in rows], dtype=torch.int64),
        "row": torch.tensor(numbers, dtype=torch.int64),
    }


def assert_same(batch: Batch, expected: dict[str, Any]) -> None:
    got = {
        "dense": batch.dense,
        "values": batch.ids.values,
        "lengths": batch.ids.lengths,
        "label": batch.label,
        "group": batch.group,
        "row": batch.row,
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=name)
        assert got[name].is_contiguous()


def test_every_row_becomes_what_the_schema_says(make: Make, schema: Schema) -> None:
    table = make(300)
    batch = encode(table, schema, label=True, where="t", first_row=1000).batch(global_rows=600)
    assert_same(batch, by_hand(table.to_pylist(), list(range(1000, 1300)), schema))
    assert batch.global_rows == 600 and batch.ids.keys == ("user", "genres", "gender", "history", "item")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_taken_rows_are_those_rows_in_that_order(data: st.DataObject, make: Make, schema: Schema) -> None:
    table = make(60, seed=data.draw(st.integers(0, 5)))
    indices = np.array(data.draw(st.lists(st.integers(0, 59), max_size=80)), np.int64)
    rows = table.to_pylist()
    columns = encode(table, schema, label=True, where="t", first_row=0)
    expected = by_hand([rows[i] for i in indices], indices.tolist(), schema)
    assert_same(columns.take(indices, global_rows=9), expected)
    # The same from rows that were encoded in two parts and joined.
    parts = [encode(t, schema, label=True, where="t", first_row=n) for n, t in ((0, table[:17]), (17, table[17:]))]
    assert_same(concat(parts).take(indices, global_rows=9), expected)


def test_a_request_is_read_as_the_training_data_is_and_has_no_label(make: Make, schema: Schema) -> None:
    table = make(20)
    request = pa.Table.from_pylist(table.drop_columns(["label", "time"]).to_pylist(), schema.arrow(label=False))
    batch = encode(request, schema, label=False, where="request", first_row=0).batch(global_rows=20)
    assert_same(batch, by_hand(table.to_pylist(), list(range(20)), schema, label=False))


def test_a_batch_shares_no_memory_with_the_columns(make: Make, schema: Schema) -> None:
    columns = encode(make(10), schema, label=True, where="t", first_row=0)
    before = columns.dense.copy(), columns.label.copy(), columns.row.copy()
    batch = columns.take(np.arange(10), global_rows=10)
    for tensor in (batch.dense, batch.label, batch.row, batch.ids.values, batch.group):
        tensor.fill_(7)
    for now, then in zip((columns.dense, columns.label, columns.row), before, strict=True):
        assert (now == then).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(make: Make, schema: Schema, rows: int) -> None:
    table = make(1)[:rows]
    batch = encode(table, schema, label=True, where="t", first_row=0).batch(global_rows=rows)
    assert_same(batch, by_hand(table.to_pylist(), list(range(rows)), schema))


def test_a_schema_of_one_kind_only(make: Make) -> None:
    for feature in (Dense(name="price"), Id(name="item", rows=100), IdSequence(name="history", rows=100)):
        schema = Schema(features=(feature,))
        table = make(30)
        batch = encode(table, schema, label=True, where="t", first_row=0).take(np.arange(30), global_rows=30)
        assert_same(batch, by_hand(table.to_pylist(), list(range(30)), schema))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("item", pa.int16()),
        ("item", pa.uint8()),
        ("item", pa.uint32()),
        ("item", pa.dictionary(pa.int8(), pa.int64())),
        ("price", pa.float32()),
        ("price", pa.float16()),
        ("price", pa.int32()),
        ("gender", pa.large_string()),
        ("gender", pa.dictionary(pa.int32(), pa.string())),
        ("gender", pa.dictionary(pa.int8(), pa.large_string())),
        ("history", pa.large_list(pa.int64())),
        ("history", pa.list_(pa.int16())),
        ("genres", pa.large_list(pa.large_string())),
        ("label", pa.int8()),
        ("label", pa.bool_()),
    ],
)
def test_types_that_widen_give_the_same_rows(make: Make, schema: Schema, column: str, kind: pa.DataType) -> None:
    table = make(50)
    whole = pa.array([float(x % 7) for x in range(50)])
    table = table.set_column(table.column_names.index("price"), "price", whole)
    at = table.column_names.index(column)
    if pa.types.is_dictionary(kind):
        other = table.column(column).combine_chunks().cast(kind.value_type).dictionary_encode()
    else:
        other = table.column(column).cast(kind)
    columns = encode(table.set_column(at, column, other), schema, label=True, where="t", first_row=0)
    assert_same(columns.batch(global_rows=50), by_hand(table.to_pylist(), list(range(50)), schema))


def test_columns_in_several_chunks_and_slices(make: Make, schema: Schema) -> None:
    table = pa.concat_tables([make(40)[3:20], make(40)[20:20], make(40)[20:37]])
    dictionaries = pa.chunked_array([c.dictionary_encode() for c in table.column("gender").chunks])
    other = table.set_column(table.column_names.index("gender"), "gender", dictionaries)
    columns = encode(other, schema, label=True, where="t", first_row=0)
    assert_same(columns.batch(global_rows=34), by_hand(table.to_pylist(), list(range(34)), schema))


def test_nulls_have_a_meaning_where_the_schema_gives_one() -> None:
    schema = Schema(
        features=(
            Dense(name="age", missing=3.0),
            Id(name="gender", vocabulary=("F",)),
            IdList(name="tags", vocabulary=("a", "b")),
            IdSequence(name="history", rows=5, max_length=2),
        )
    )
    rows: list[dict[str, Any]] = [
        {"age": None, "gender": None, "tags": None, "history": None},
        {"age": 1.0, "gender": "X", "tags": ["b", "z"], "history": [1, 2, 3]},
    ]
    for typed in (schema.arrow(label=False), None):  # without types, the columns of the first row are all null
        for some in (rows, rows[:1]):
            batch = encode(pa.Table.from_pylist(some, typed), schema, label=False, where="request", first_row=0).batch(
                global_rows=2
            )
            assert_same(batch, by_hand([r | {"label": 0} for r in some], list(range(len(some))), schema))


def test_a_null_list_hides_the_values_behind_it() -> None:
    """Arrow allows a null list to cover values; they are not the row's."""
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, 90, 91, 3]), mask=pa.array([False, True, False])
    )
    schema = Schema(features=(IdSequence(name="h", rows=10),))
    columns = encode(pa.table({"h": lists}), schema, label=False, where="t", first_row=0)
    assert columns.lists[0].values.tolist() == [1, 2, 3] and columns.lists[0].lengths.tolist() == [2, 0, 1]


def test_ids_of_a_table_above_2_to_the_31_stay_whole() -> None:
    schema = Schema(features=(Id(name="a", rows=2**40), Id(name="b", rows=5), IdSequence(name="c", rows=2**40)))
    table = pa.table({"a": [2**40 - 1, 0], "b": [4, 0], "c": [[2**39], []]})
    batch = encode(table, schema, label=False, where="t", first_row=0).take(np.arange(2), global_rows=2)
    assert batch.ids.values.tolist() == [2**40 - 1, 0, 4, 0, 2**39]


def refused(table: pa.Table, schema: Schema, **kwargs: Any) -> str:
    with pytest.raises(DataError) as error:
        encode(table, schema, **({"label": True, "where": "rows.parquet rows 0..9", "first_row": 100} | kwargs))
    text = str(error.value)
    assert "\n" not in text
    return text


def changed(table: pa.Table, column: str, row: int, value: object, kind: pa.DataType | None = None) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    new = pa.array(values, kind or table.column(column).type, from_pandas=False)
    return table.set_column(table.column_names.index(column), column, new)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item", 100, "feature 'item' has id 100 at row 107, but table 'item' has rows=100 (valid 0..99)"),
        ("item", -1, "feature 'item' has id -1 at row 107, but table 'item' has rows=100 (valid 0..99)"),
        ("item", 2**40, "feature 'item' has id 1099511627776 at row 107, but table"),
        ("item", None, "feature 'item' is null at row 107. Fill it, or drop the row"),
        ("history", [1, 2, 300, 4], "feature 'history' has id 300 at row 107, but table 'item' has rows=100 (valid"),
        ("history", [500, 1, 1, 1, 1, 1], "feature 'history' has id 500 at row 107, but"),  # also beyond max_length
        ("history", [1, None], "feature 'history' has a null in its list at row 107. Fill it"),
        ("genres", [None], "feature 'genres' has a null in its list at row 107"),
        ("price", None, "feature 'price' is null at row 107. Give Dense(missing=...) a value to use instead"),
        ("price", float("nan"), "feature 'price' is nan at row 107; it must be a finite number"),
        ("price", float("-inf"), "feature 'price' is -inf at row 107; it must be a finite number"),
        ("price", 1e300, "feature 'price' is 1e+300 at row 107; it must be a finite number that float32 can hold"),
        ("age", float("nan"), "feature 'age' is nan at row 107"),
        ("label", 0.5, "label 'label' is 0.5 at row 107; it must be 0 or 1"),
        ("label", float("nan"), "label 'label' is nan at row 107; it must be 0 or 1"),
        ("label", None, "label 'label' is null at row 107; it must be 0 or 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_row(
    make: Make, schema: Schema, column: str, value: object, message: str
) -> None:
    assert refused(changed(make(10), column, 7, value), schema).startswith(f"rows.parquet rows 0..9: {message}")


def test_messages_may_count_rows_within_a_file(make: Make, schema: Schema) -> None:
    assert "at row 7," in refused(changed(make(10), "item", 7, 100), schema, first_row=5000, shown=np.arange(100))


def test_a_list_that_is_too_long_is_refused_and_a_sequence_is_cut(make: Make) -> None:
    table = changed(make(10), "history", 2, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    features = {"name": "history", "rows": 100, "max_length": 8}
    text = refused(table, Schema(features=(IdList(**features),)))  # type: ignore[arg-type]
    assert "feature 'history' has 9 values at row 102, more than its max_length=8" in text
    cut: Columns = encode(
        table,
        Schema(features=(IdSequence(**features),)),
        label=True,
        where="t",
        first_row=0,  # type: ignore[arg-type]
    )
    assert cut.select(np.array([2])).lists[0].values.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]


def test_a_column_that_is_missing_or_double_is_named(make: Make, schema: Schema) -> None:
    table = make(3)
    renamed = table.rename_columns(["itm" if c == "item" else c for c in table.column_names])
    assert "column 'item' is missing; did you mean 'itm'?" in refused(renamed, schema)
    assert "column 'label' is missing. The columns are age, user," in refused(table.drop_columns(["label"]), schema)
    assert "two columns 'age'" in refused(table.append_column("age", table.column("age")), schema)
    encode(table.drop_columns(["label"]), schema, label=False, where="request", first_row=0)


@pytest.mark.parametrize(
    ("column", "kind", "needs"),
    [
        ("item", pa.string(), "int64"),
        ("item", pa.float64(), "int64"),
        ("item", pa.uint64(), "int64"),
        ("item", pa.list_(pa.int64()), "int64"),
        ("price", pa.string(), "double"),
        ("price", pa.bool_(), "double"),
        ("gender", pa.int64(), "string"),
        ("gender", pa.binary(), "string"),
        ("history", pa.int64(), "list<"),
        ("history", pa.list_(pa.string()), "list<"),
        ("genres", pa.list_(pa.int64()), "list<"),
        ("genres", pa.string(), "list<"),
        ("label", pa.string(), "double"),
    ],
)
def test_a_column_of_another_type_is_refused(
    make: Make, schema: Schema, column: str, kind: pa.DataType, needs: str
) -> None:
    table = make(3)
    empty = pa.nulls(3, kind)
    text = refused(table.set_column(table.column_names.index(column), column, empty), schema)
    assert f"column {column!r} is {kind}, but the schema needs {needs}" in text
    assert "Cast the column" in text


def test_several_labels_of_which_one_may_be_missing() -> None:
    schema = Schema(
        features=(Dense(name="a"),), label=Label(name="click"), more_labels=(Label(name="like", optional=True),)
    )
    table = pa.table({"a": [0.0, 1.0, 2.0], "click": [0, 1, 1], "like": [None, 1, 0]})
    columns = encode(table, schema, label=True, where="file", first_row=0)
    assert columns.label.dtype == np.float32
    np.testing.assert_array_equal(columns.label, [[0, np.nan], [1, 1], [1, 0]])
    batch = columns.take(np.array([2, 0]), global_rows=2)
    np.testing.assert_array_equal(batch.label.numpy(), [[1, 0], [0, np.nan]])
    for like, message in ([None, 1, 2], "label 'like' is 2.0 at row 2"), ([float("nan"), 1, 0], "'like' is nan"):
        wrong = table.set_column(2, "like", pa.array(like, pa.float64()))
        with pytest.raises(DataError, match=message):
            encode(wrong, schema, label=True, where="file", first_row=0)
    with pytest.raises(DataError, match="label 'click' is null at row 1"):
        encode(table.set_column(1, "click", pa.array([0, None, 1])), schema, label=True, where="file", first_row=0)


def test_words_that_the_vocabulary_lacks_are_groups_of_their_own() -> None:
    feature = Id(name="user", entity="user", vocabulary=("ann", "bob"))
    schema = Schema(features=(feature,), group="user")
    words = ["zoe", "ann", None, "yan", "bob", "zoe", "", "ann", None, "Zoe"]
    table = pa.table({"user": pa.array(words, pa.string()), "label": [0.0] * len(words)})
    columns = encode(table, schema, label=True, where="t", first_row=0)
    assert columns.singles[:, 0].tolist() == [0, 1, 0, 0, 2, 0, 0, 1, 0, 0]  # the model has one row for them
    group = dict(zip(words, columns.group.tolist(), strict=True))
    assert [group[w] for w in words] == columns.group.tolist()
    assert (group[None], group["ann"], group["bob"]) == (0, 1, 2)
    assert len(set(group.values())) == len(group) and all(group[w] < 0 for w in ("zoe", "yan", "", "Zoe"))
    # The same in other company, in another type and another process: what a rank has not seen cannot matter.
    assert group["zoe"] == 1927800831426559247 // 2 - 2**63
    users = pa.chunked_array([["yan"], ["zoe"]], pa.large_string()).dictionary_encode()
    other = pa.table({"user": users, "label": [0.0, 1.0]})
    batch = encode(other, schema, label=True, where="t", first_row=5).take(np.array([1, 0, 1]), global_rows=3)
    assert batch.group.tolist() == [group["zoe"], group["yan"], group["zoe"]] and batch.group.dtype == torch.int64
