"""Sequences with times: what a batch says of each id, whatever holds it, and what is refused."""

from dataclasses import replace
from datetime import date
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

from rtrain.batch import Batch, times
from rtrain.data import Interactions
from rtrain.data.columns import concat
from rtrain.data.encode import encode
from rtrain.data.side import SideFeatures
from rtrain.errors import ConfigError, DataError
from rtrain.export.request import json_schema, row_model, rows_of
from rtrain.schema import Id, IdList, IdSequence, Schema

HISTORY = IdSequence(name="history", rows=100, table="item", max_length=3, times="had")
SCHEMA = Schema(
    features=(
        Id(name="item", rows=100),
        IdSequence(name="plain", rows=9),
        HISTORY,
        IdList(name="tags", rows=5),
        IdSequence(name="shops", rows=7, times="had"),  # one column of times for both
        IdSequence(name="searches", rows=7, max_length=2, times="searched"),
    ),
    time="at",
)
Row = dict[str, Any]


def some(count: int, seed: int = 0) -> list[Row]:
    """Rows in time order, of histories of 0 to 5 items, with ties and items of the row's own moment."""
    draw = np.random.default_rng(seed)
    rows = []
    for at in np.sort(draw.integers(1_000, 1_000 + count, count)).tolist():
        had, searched = (np.sort(at - draw.integers(0, 9, draw.integers(0, 6))).tolist() for _ in range(2))
        rows.append(
            {
                "item": int(draw.integers(0, 100)),
                "plain": [1, 2],
                "history": draw.integers(0, 100, len(had)).tolist(),
                "had": had,
                "tags": [4],
                "shops": draw.integers(0, 7, len(had)).tolist(),
                "searches": draw.integers(0, 7, len(searched)).tolist(),
                "searched": searched,
                "at": at,
                "label": float(draw.integers(0, 2)),
            }
        )
    return rows


def table_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA.arrow(label=True))


def by_hand(rows: list[Row]) -> dict[str, list[list[int]]]:
    """What `Batch.times` must hold, value by value in plain Python."""
    found = {}
    for feature in SCHEMA.timed:
        kept = [[row["at"] - when for when in row[feature.times]][-feature.max_length :] for row in rows]
        longest = max([1, *map(len, kept)])
        found[feature.name] = [ago + [0] * (longest - len(ago)) for ago in kept]
    return found


def assert_same(batch: Batch, rows: list[Row]) -> None:
    expected = by_hand(rows)
    assert list(batch.times) == ["history", "shops", "searches"]
    for name, ago in batch.times.items():
        assert ago.tolist() == expected[name] and ago.dtype == torch.int64
        assert ago.shape == batch.ids.padded(name).shape
        assert batch.inputs[times(name)] is ago


@settings(deadline=None)
@given(data=st.data())
def test_each_id_has_the_seconds_before_its_rows_moment_in_whatever_batch(data: st.DataObject) -> None:
    rows = some(40, seed=data.draw(st.integers(0, 5)))
    cut = data.draw(st.integers(0, 40))
    parts = [
        encode(table_of(part), SCHEMA, label=True, where="t", first_row=first)
        for part, first in ((rows[:cut], 0), (rows[cut:], cut))
    ]
    indices = np.array(data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=60)), np.int64)
    assert_same(concat(parts).take(indices, global_rows=60), [rows[i] for i in indices])
    request = table_of(rows).drop_columns(["label"])
    assert_same(encode(request, SCHEMA, label=False, where="request", first_row=0).batch(global_rows=40), rows)


def test_the_newest_of_ids_and_times_are_kept() -> None:
    row = some(1)[0] | {"history": [1, 2, 3, 4, 5], "shops": [0] * 5, "had": [10, 20, 20, 30, 40], "at": 45}
    batch = encode(table_of([row]), SCHEMA, label=True, where="t", first_row=0).batch(global_rows=1)
    assert batch.ids.padded("history").tolist() == [[3, 4, 5]]
    assert batch.times["history"].tolist() == [[25, 15, 5]]
    assert batch.times["shops"].tolist() == [[35, 25, 25, 15, 5]]


def test_what_lies_centuries_back_is_told_in_full() -> None:
    row = some(1)[0] | {"history": [1, 2], "shops": [1, 1], "had": [-62_135_596_800, 0], "at": 253_402_300_799}
    batch = encode(table_of([row]), SCHEMA, label=True, where="t", first_row=0).batch(global_rows=1)
    assert batch.times["history"].tolist() == [[315_537_897_599, 253_402_300_799]]


MOMENTS = [-1.5, 0.25, 86_399.75, 1_700_000_000.5]


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("s"),
        pa.timestamp("ms", "Europe/Berlin"),
        pa.timestamp("us"),
        pa.timestamp("ns", "UTC"),
        pa.date32(),
        pa.date64(),
        pa.int32(),
        pa.uint32(),
    ],
)
def test_moments_of_any_type_are_brought_to_whole_seconds(kind: pa.DataType) -> None:
    schema = Schema(features=(IdSequence(name="h", rows=9, times="had"),), time="at")
    if pa.types.is_integer(kind):
        had, seconds = MOMENTS[2:], [86_399, 1_700_000_000]
        values = pa.array([int(x) for x in had], kind)
    elif pa.types.is_date(kind):
        values, seconds = pa.array([date(1969, 12, 31), date(1970, 1, 2)], kind), [-86_400, 86_400]
    else:
        each = 10 ** {"s": 0, "ms": 3, "us": 6, "ns": 9}[kind.unit]
        values = pa.array([int(np.floor(x * each)) for x in MOMENTS], pa.int64()).cast(kind)
        seconds = [-2, 0, 86_399, 1_700_000_000]
    rows = pa.table(
        {
            "h": [list(range(len(seconds))), None],
            "had": pa.LargeListArray.from_arrays(
                pa.array([0, len(seconds), len(seconds)]), values, mask=pa.array([False, True])
            ),
            "at": pa.array([values[-1], values[-1]], kind),
            "label": [0, 1],
        }
    )
    batch = encode(rows, schema, label=True, where="t", first_row=0).batch(global_rows=2)
    assert batch.times["h"].tolist() == [[seconds[-1] - s for s in seconds], [0] * len(seconds)]
    asked = rows_of(rows, schema)  # as requests, which know seconds alone
    assert asked[0] == {"h": list(range(len(seconds))), "had": seconds, "at": seconds[-1]}
    assert asked[1] == {"had": [], "at": seconds[-1]}
    Row: Any = row_model(schema)
    table = pa.Table.from_pylist([Row(**row).model_dump() for row in asked], schema.arrow(label=False))
    served = encode(table, schema, label=False, where="request", first_row=0).batch(global_rows=2)
    assert torch.equal(served.times["h"], batch.times["h"])


def test_histories_that_are_all_null_or_empty_have_no_time() -> None:
    schema = Schema(features=(IdSequence(name="h", rows=9, times="had"),), time="at")
    for nothing in (pa.nulls(2), pa.array([[], None], pa.list_(pa.int64()))):
        rows = pa.table({"h": nothing, "had": nothing, "at": [1, 2], "label": [0, 1]})
        batch = encode(rows, schema, label=True, where="t", first_row=0).batch(global_rows=2)
        assert batch.times["h"].tolist() == [[0], [0]] and batch.ids.padded("h").tolist() == [[0], [0]]
    none = encode(rows.slice(0, 0), schema, label=True, where="t", first_row=0).batch(global_rows=0)
    assert none.times["h"].shape == (0, 1)
    assert none.padded(3, {"h": 5}).times["h"].tolist() == [[0] * 5] * 3


WRONG = [
    ({"had": [7, 8]}, "feature 'history' has 3 ids at row 12, but 2 times in 'had'. Give each id its own"),
    ({"had": None}, "feature 'history' has 3 ids at row 12, but 0 times in 'had'"),
    ({"shops": [1]}, "feature 'shops' has 1 ids at row 12, but 3 times in 'had'"),
    ({"had": [9, 7, 8]}, "feature 'history': its times 'had' fall from 9 to 7 at row 12; they must rise. Sort ids"),
    ({"had": [7, 8, 11]}, "feature 'history': its times 'had' hold 11 at row 12, behind the row's own moment, 10: the"),
    ({"had": [7, 8, None]}, "feature 'history': its times 'had' have a null at row 12. Fill it, or drop the row"),
    ({"at": None}, "time 'at' is null at row 12. Fill it, or drop the row"),
    ({"at": 1_700_000_000_000}, "time 'at' is 1700000000000 at row 12, which in seconds since 1970 is of no year from"),
    (
        {"had": [-(2**62), 8, 9]},
        f"feature 'history': its times 'had' hold {-(2**62)} at row 12, which in seconds since",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda x: str(x)[:30])
def test_times_that_cannot_be_are_named_with_feature_row_and_value(change: Row, message: str) -> None:
    right = some(1)[0] | {"history": [1, 2, 3], "shops": [1, 2, 3], "had": [7, 8, 9], "at": 10, "searched": []}
    right["searches"] = []
    encode(table_of([right]), SCHEMA, label=True, where="t", first_row=0)
    with pytest.raises(DataError) as error:
        encode(table_of([right, right, right | change]), SCHEMA, label=True, where="rows", first_row=10)
    assert str(error.value).startswith(f"rows: {message}") and "\n" not in str(error.value)


def test_columns_of_other_types_are_refused() -> None:
    table = table_of(some(2))
    for name, kind, needs in (
        ("at", pa.float64(), "int64"),
        ("at", pa.string(), "int64"),
        ("had", pa.list_(pa.float64()), "list<item: int64>"),
        ("had", pa.int64(), "list<item: int64>"),
        ("item", pa.timestamp("s"), "int64"),  # of ids, no moment is one
    ):
        other = table.set_column(table.column_names.index(name), name, pa.nulls(2, kind))
        with pytest.raises(DataError, match=f"column '{name}' is .*, but the schema needs {needs}"):
            encode(other, SCHEMA, label=True, where="t", first_row=0)
    for name in ("had", "at"):
        with pytest.raises(DataError, match=f"column '{name}' is missing"):
            encode(table.drop_columns([name]), SCHEMA, label=True, where="t", first_row=0)


moment = st.integers(0, 4)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 5), max_size=3),
    st.lists(moment, max_size=3),
    st.lists(st.integers(0, 6), max_size=3),
    moment,
)
def test_a_request_is_refused_just_where_a_training_row_is(
    ids: list[int], had: list[int], shops: list[int], at: int
) -> None:
    row = {"item": 1, "history": ids, "had": had, "shops": shops, "at": at}
    Row: Any = row_model(SCHEMA)
    table = pa.Table.from_pylist([row], SCHEMA.arrow(label=False))
    try:
        encode(table, SCHEMA, label=False, where="request", first_row=0)
    except DataError as error:
        with pytest.raises(ValidationError) as refused:
            Row(**row)
        assert len(refused.value.errors()) == 1 and "'had'" in str(error) and "had" in str(refused.value)
    else:
        assert Row(**row).model_dump() == row | {"plain": [], "tags": [], "searches": [], "searched": []}


def test_a_caller_is_told_of_times_and_of_the_rows_moment() -> None:
    told = json_schema(SCHEMA)
    assert told["required"] == ["item", "at"]
    had, at = told["properties"]["had"], told["properties"]["at"]
    flat, nested, _ = had["anyOf"]
    assert flat["items"] == {"type": "integer", "minimum": -62_135_596_800, "maximum": 253_402_300_799}
    assert nested["items"] == flat
    assert had["description"].startswith("when each id of") and at["description"].startswith("the row's own moment")
    plain = replace(SCHEMA, features=(SCHEMA.features[0], SCHEMA.features[1]))
    assert list(json_schema(plain)["properties"]) == ["item", "plain"]  # no times: nor a moment


def test_padding_makes_times_as_long_as_the_sequence_that_tables_are_told() -> None:
    rows = some(6)
    batch = encode(table_of(rows), SCHEMA, label=True, where="t", first_row=0).batch(global_rows=6)
    assert batch.padded(6) is batch
    padded = batch.padded(8, {"history": 9, "item": 1})
    assert padded.times["history"].shape == (8, 9) and padded.times["shops"].shape[0] == 8
    for name, ago in batch.times.items():
        again = padded.times[name]
        assert torch.equal(again[:6, : ago.shape[1]], ago)
        assert not again[6:].any() and not again[:, ago.shape[1] :].any()
    assert batch.padded(6, {"history": 9}).times["history"].shape == (6, 9)
    assert {t.device.type for t in batch.to(torch.device("meta")).times.values()} == {"meta"}


@pytest.mark.parametrize("world", [2, 3])
def test_a_row_has_the_same_times_at_any_world_size(tmp_path: Path, world: int) -> None:
    rows = some(400)
    pq.write_table(table_of(rows), tmp_path / "rows.parquet", row_group_size=50)
    data = Interactions(source=str(tmp_path / "rows.parquet"), schema=SCHEMA, window_rows=200, leakage="allow").open()
    assert data.inputs == ("dense", "times.history", "times.shops", "times.searches")

    def told(world_size: int) -> dict[int, list[list[int]]]:
        found = {}
        for rank in range(world_size):
            reader = data.reader("train", global_batch=24, seed=1, rank=rank, world_size=world_size)
            for _, (batch, _cursor) in zip(range(9), reader, strict=False):
                for name in batch.times:
                    lengths = batch.ids.lengths.view(len(batch.ids.keys), -1)[batch.ids.keys.index(name)]
                    for number, ago, length in zip(batch.row, batch.times[name], lengths, strict=True):
                        found.setdefault(int(number), {})[name] = ago[:length].tolist()
            reader.close()
        return {number: list(of.values()) for number, of in found.items()}

    def by_hand_of(row: Row) -> list[list[int]]:
        return [[row["at"] - when for when in row[f.times]][-f.max_length :] for f in SCHEMA.timed]

    alone = told(1)
    assert alone == told(world) and len(alone) > 200
    assert alone == {n: by_hand_of(rows[n]) for n in alone}


def test_a_time_behind_its_row_is_found_before_anything_trains(tmp_path: Path) -> None:
    rows = some(300)
    late = next(n for n in range(250, 299) if rows[n]["had"])
    rows[late]["had"][-1] = rows[-1]["at"] + 5
    path = tmp_path / "rows.parquet"
    pq.write_table(table_of(rows), path, row_group_size=60)
    data = Interactions(source=str(path), schema=SCHEMA, leakage="allow").open()
    with pytest.raises(DataError, match=rf"its times 'had' hold {rows[-1]['at'] + 5} at row {late}, behind the row's"):
        data.refuse_rows()


def test_schemas_and_side_tables_that_cannot_have_times() -> None:
    with pytest.raises(ConfigError, match=r"schema.time: it is empty, but feature 'history' has times"):
        Schema(features=(HISTORY,))
    for fields in (
        {"features": (HISTORY, Id(name="had", rows=2)), "time": "at"},
        {"features": (HISTORY, Id(name="at", rows=2)), "time": "at"},
        {"features": (HISTORY,), "time": "had"},
        {"features": (HISTORY,), "time": "label"},
    ):
        with pytest.raises(ConfigError, match="schema: the name '.*' is used twice"):
            Schema(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="feature 'history' has times, but users.parquet has no moment"):
        SideFeatures(source="users.parquet", key="id", features=(replace(HISTORY, table=""),))
