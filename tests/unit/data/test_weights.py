"""Weights of rows and labels that are numbers: what is refused, and the sum that every rank knows."""

import re
from dataclasses import replace
from functools import partial
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.encode import encode
from rtrain.data.interactions import Interactions
from rtrain.errors import ConfigError, DataError
from rtrain.schema import Id, Label, Schema

SCHEMA = Schema(features=(Id(name="item", rows=5),), weight="w", time="at")
ROWS = 200


def table(rows: int = ROWS) -> pa.Table:
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "item": draw.integers(0, 5, rows),
            "label": draw.integers(0, 2, rows),
            "w": draw.random(rows),
            "at": np.arange(rows),
        }
    )


@pytest.mark.parametrize("window_rows", [37, 1000])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_weights_of_a_batch_are_those_of_all_ranks_rows(tmp_path: Path, world: int, window_rows: int) -> None:
    # Row groups of 20 make windows that end within a batch, and within a rank's share of it.
    pq.write_table(table(), tmp_path / "rows.parquet", row_group_size=20)
    data = Interactions(source=str(tmp_path / "rows.parquet"), schema=SCHEMA, window_rows=window_rows).open()
    weights = table()["w"].to_numpy().astype(np.float32)
    readers = [iter(data.reader(global_batch=32, seed=1, rank=rank, world_size=world)) for rank in range(world)]
    for _ in range(11):  # two epochs
        batches = [next(reader)[0] for reader in readers]
        rows = np.concatenate([batch.row.numpy() for batch in batches])
        own = [batch.loss_units(float) for batch in batches]
        assert sum(own) == pytest.approx(weights[rows].sum(dtype=np.float64), rel=1e-12)
        assert batches[0].loss_units(partial(add, 7.0)) == own[0] + 7, "what the other ranks' rows have is added"
        for batch in batches:
            assert batch.weight is not None
            assert batch.target[:, 1].tolist() == weights[batch.row.numpy()].tolist()
            padded = batch.padded(batch.rows + 2)
            assert padded.weight is not None and padded.weight[-2:].tolist() == [0, 0]
            assert padded.loss_units(float) == batch.loss_units(float)
    for reader in readers:
        reader.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "got"), [(-0.5, "-0.5"), (None, "null"), (float("nan"), "nan"), (float("inf"), "inf"), (1e39, "1e+39")]
)
def test_a_weight_that_cannot_be_used_is_named_with_its_row(value: float | None, got: str) -> None:
    weights = pa.array([1.0, 0.0, value], pa.float64(), from_pandas=False)
    given = table(3).set_column(2, "w", weights)
    said = re.escape(f"t: weight 'w' is {got} at row 12; it must be a finite number of at least 0")
    with pytest.raises(DataError, match=f"^{said}$"):
        encode(given, SCHEMA, label=True, where="t", first_row=10)


def test_a_missing_weight_column_is_refused_and_a_request_needs_none() -> None:
    with pytest.raises(DataError, match="column 'w' is missing"):
        encode(table().drop_columns(["w"]), SCHEMA, label=True, where="t", first_row=0)
    assert encode(table().select(["item"]), SCHEMA, label=False, where="t", first_row=0).weight is None


def test_a_batch_of_no_weight_is_refused_where_its_loss_is_asked_for() -> None:
    columns = encode(table(4).set_column(2, "w", [[0.0] * 4]), SCHEMA, label=True, where="t", first_row=70)
    batch = columns.batch(global_rows=4)
    with pytest.raises(DataError) as caught:
        batch.loss_units(float)
    assert str(caught.value) == (
        "row 70 of the data: its weight (schema.weight) is 0, and so is that of all 4 rows of its global batch, which "
        "has no loss then. Raise global_batch, or drop them"
    )


def test_a_label_that_is_a_number() -> None:
    schema = replace(SCHEMA, label=Label(kind="number"))
    labels = pa.array([-7.25, 0.0, 1e9])
    given = table(3).set_column(1, "label", labels)
    assert encode(given, schema, label=True, where="t", first_row=0).label.tolist() == labels.to_pylist()
    for value, got in ((float("nan"), "nan"), (None, "null"), (1e39, "1e+39")):
        wrong = given.set_column(1, "label", pa.array([1.0, value, 2.0], pa.float64(), from_pandas=False))
        said = re.escape(f"label 'label' is {got} at row 1; it must be a finite number that float32 can hold")
        with pytest.raises(DataError, match=said):
            encode(wrong, schema, label=True, where="t", first_row=0)
    with_null = given.set_column(1, "label", pa.array([1.0, None, 2.0]))
    optional = replace(schema, label=Label(kind="number", optional=True))
    assert np.isnan(encode(with_null, optional, label=True, where="t", first_row=0).label).tolist() == [0, 1, 0]


def test_schemas_that_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Schema(features=(), more_labels=(Label(name="price", kind="number"),))
    said = "schema: all labels are of one kind, but 'label' is binary, 'price' is number. Give each kind its own run"
    assert str(caught.value) == said
    with pytest.raises(ConfigError, match="the name 'label' is used twice"):
        Schema(features=(), weight="label")
