"""Schemas that are refused, what a schema derives, and padding of a batch."""

import math
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtrain import config
from rtrain.batch import Batch, Jagged
from rtrain.errors import ConfigError
from rtrain.schema import Dense, Id, IdList, IdSequence, Label, Schema

KEYS = ("user", "tags", "seen")


def batch_of(rows: list[tuple[list[int], ...]]) -> Batch:
    """A batch whose row b has `rows[b][f]` as the ids of feature f."""
    count = len(rows)
    by_feature = [[row[f] for row in rows] for f in range(len(KEYS))]
    return Batch(
        dense=torch.arange(1, 2 * count + 1, dtype=torch.float32).view(count, 2),
        ids=Jagged(
            KEYS,
            torch.tensor([v for feature in by_feature for ids in feature for v in ids], dtype=torch.int64),
            torch.tensor([len(ids) for feature in by_feature for ids in feature], dtype=torch.int32),
        ),
        label=torch.ones(count),
        group=torch.arange(count) + 5,
        row=torch.arange(count) + 100,
        global_rows=64,
    )


def ids_of(batch: Batch) -> list[tuple[list[int], ...]]:
    """The inverse of `batch_of`: the ids of each row, feature by feature."""
    pieces = torch.split(batch.ids.values, batch.ids.lengths.tolist())
    count = batch.rows
    return [tuple(pieces[f * count + b].tolist() for f in range(len(KEYS))) for b in range(count)]


ragged = st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=3)] * len(KEYS)), min_size=1, max_size=6)


@settings(deadline=None)
@given(ragged, st.integers(0, 5))
def test_padding_keeps_the_rows_and_adds_empty_ones_to_each_feature(rows: Any, extra: int) -> None:
    batch = batch_of(rows)
    padded = batch.padded(len(rows) + extra)
    assert padded.rows == len(rows) + extra
    assert ids_of(padded) == rows + [([], [], [])] * extra
    assert padded.ids.keys == KEYS
    assert torch.equal(padded.ids.values, batch.ids.values)
    assert padded.ids.lengths.dtype == torch.int32
    for name in ("dense", "label", "group", "row"):
        before, after = getattr(batch, name), getattr(padded, name)
        assert after.dtype == before.dtype
        assert torch.equal(after[: len(rows)], before)
        fill = {"row": -1, "label": math.nan}.get(name, 0)
        torch.testing.assert_close(
            after[len(rows) :], torch.full_like(after[len(rows) :], fill), rtol=0, atol=0, equal_nan=True
        )
    assert padded.global_rows == 64


def test_a_full_batch_is_not_copied() -> None:
    batch = batch_of([([1], [2, 3], [])])
    assert batch.padded(1) is batch
    assert batch.to(torch.device("cpu")) is batch


def test_an_empty_share_can_be_padded() -> None:
    padded = batch_of([]).padded(3)
    assert ids_of(padded) == [([], [], [])] * 3
    assert padded.dense.shape == (3, 2)
    assert not (padded.row >= 0).any()


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_std_that_is_not_positive_is_refused(std: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Dense(name="age", std=std)
    assert str(caught.value) == f"feature 'age': std must be positive, got {std}"


@pytest.mark.parametrize("kind", [Id, IdList, IdSequence])
@pytest.mark.parametrize("given", [{}, {"rows": 3, "vocabulary": ("a",)}])
def test_an_id_needs_rows_or_a_vocabulary_and_not_both(kind: Any, given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(name="x", **given)
    assert str(caught.value) == (
        "feature 'x': give either rows (for integers) or vocabulary (for strings) or vocabulary_file"
    )


@pytest.mark.parametrize("kind", [Id, IdList, IdSequence])
def test_negative_rows_are_refused(kind: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(name="x", rows=-5)
    assert str(caught.value) == "feature 'x': rows must be positive, got -5"


@pytest.mark.parametrize("kind", [IdList, IdSequence])
@pytest.mark.parametrize("length", [0, -3])
def test_a_max_length_that_holds_nothing_is_refused(kind: Any, length: int) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(name="x", rows=5, max_length=length)
    assert str(caught.value) == f"feature 'x': max_length must be at least 1, got {length}"


def test_a_word_twice_in_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Id(name="x", vocabulary=("a", "b", "a"))
    assert str(caught.value) == "feature 'x': its vocabulary has a word twice"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": (Id(name="x", rows=2), Dense(name="x"))}, "schema: the name 'x' is used twice"),
        ({"features": (Id(name="label", rows=2),)}, "schema: the name 'label' is used twice"),
        ({"features": (Dense(name="y"),), "label": Label(name="y")}, "schema: the name 'y' is used twice"),
        (
            {"features": (Id(name="x", rows=2),), "group": "user"},
            "schema.group: 'user' is not an Id feature of this schema",
        ),
        ({"features": (Dense(name="d"),), "group": "d"}, "schema.group: 'd' is not an Id feature of this schema"),
        (
            {"features": (IdList(name="many", rows=2),), "group": "many"},
            "schema.group: 'many' is not an Id feature of this schema",
        ),
        (
            {"features": (Id(name="x", rows=2, table="t"), Id(name="y", rows=3, table="t"))},
            "schema: features of table 't' disagree on its rows: 2, 3",
        ),
        (
            {"features": (Id(name="x", rows=2), IdList(name="y", vocabulary=("a", "b"), table="x"))},
            "schema: features of table 'x' disagree on its rows: 2, 3",
        ),
    ],
)
def test_schemas_that_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schema(**fields)
    assert str(caught.value) == message


def test_what_a_schema_derives_from_its_features() -> None:
    schema = Schema(
        features=(
            Dense(name="age"),
            Id(name="item", rows=7),
            Id(name="colour", vocabulary=("red", "blue")),
            IdSequence(name="history", rows=7, table="item", max_length=4),
            IdList(name="tags", vocabulary=("a", "b", "c")),
        ),
        label=Label(name="clicked"),
        group="item",
    )
    assert [f.name for f in schema.dense] == ["age"]
    assert [f.name for f in schema.ids] == ["item", "colour", "history", "tags"]
    # One row more than words, for the unknown one; a shared table once, in order of first use.
    assert list(schema.tables.items()) == [("item", 7), ("colour", 3), ("tags", 4)]
    request = pa.schema(
        [
            ("age", pa.float64()),
            ("item", pa.int64()),
            ("colour", pa.string()),
            ("history", pa.list_(pa.int64())),
            ("tags", pa.list_(pa.string())),
        ]
    )
    assert schema.arrow(label=False) == request
    assert schema.arrow(label=True) == request.append(pa.field("clicked", pa.float64()))


def test_several_labels() -> None:
    schema = Schema(features=(Dense(name="a"),), label=Label(name="click"), more_labels=(Label(name="like"),))
    assert [label.name for label in schema.labels] == ["click", "like"]
    assert schema.arrow(label=True).names == ["a", "click", "like"]
    assert schema.arrow(label=False).names == ["a"]
    with pytest.raises(ConfigError, match="the name 'click' is used twice"):
        Schema(features=(Dense(name="a"),), label=Label(name="click"), more_labels=(Label(name="click"),))


def test_a_config_of_before_the_feature_was_renamed_is_read() -> None:
    feature = IdSequence(name="history", rows=9)
    stored = config.to_dict(feature)
    assert stored["$type"] == "rtrain.schema:IdSequence"
    assert config.from_dict(stored | {"$type": "rtrain.schema:Sequence"}) == feature
