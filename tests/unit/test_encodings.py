"""Encodings of numbers against the paper's formula, from rows and requests to every model's tower."""

import json
import math
import re
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

from rtrain import config
from rtrain.data.encode import encode
from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.encodings import Log1p, PiecewiseLinear, Quantiles
from rtrain.errors import ConfigError, DataError
from rtrain.export.artifact import Predictor
from rtrain.export.request import row_model
from rtrain.mesh import Parallel
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.dlrm import DLRM
from rtrain.run import Evaluation, Handoff, Run
from rtrain.schema import Dense, Id, Schema
from tests.unit.training.jobs import train

EDGES = (-2.0, 0.0, 0.5, 10.0)


def paper(x: float, b: tuple[float, ...]) -> list[float]:
    """Formula 1 of Gorishniy et al. 2022, with its exceptions for the first and the last bin."""
    last = len(b) - 1
    found = []
    for t in range(1, last + 1):
        if x < b[t - 1] and t > 1:
            found.append(0.0)
        elif x >= b[t] and t < last:
            found.append(1.0)
        else:
            found.append((x - b[t - 1]) / (b[t] - b[t - 1]))
    return found


def batch_of(schema: Schema, columns: dict[str, Any]) -> torch.Tensor:
    table = pa.table(columns | {"item": [0] * len(next(iter(columns.values())))})
    return encode(table, schema, label=False, where="t", first_row=0).batch(global_rows=table.num_rows).dense


def schema_of(*features: Dense) -> Schema:
    return Schema(features=(*features, Id(name="item", rows=10)), time="at")


edges = st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True).map(lambda x: tuple(sorted(x)))


@settings(deadline=None)
@given(edges, st.lists(st.floats(-1100, 1100), min_size=1, max_size=20))
def test_columns_are_the_papers(b: tuple[int, ...], values: list[float]) -> None:
    rising = tuple(e / 8 for e in b)
    values = [*values, *rising]
    schema = schema_of(Dense(name="x", encoding=PiecewiseLinear(edges=rising)))
    wanted = torch.tensor([paper(x, rising) for x in values])
    # A row keeps the place among up to 20 bins as float32: 20 * 6e-8 of a bin; far outside, a share of the distance.
    torch.testing.assert_close(batch_of(schema, {"x": values}), wanted, rtol=3e-6, atol=3e-6)


def test_each_feature_has_its_own_columns_in_order() -> None:
    schema = schema_of(
        Dense(name="plain", mean=1.0, std=2.0),
        Dense(name="bins", encoding=PiecewiseLinear(edges=EDGES), missing=0.25),
        Dense(name="rank", encoding=Quantiles(edges=EDGES)),
        Dense(name="one", encoding=PiecewiseLinear(edges=(0, 4))),
        Dense(name="count", encoding=Log1p(), missing=0.0),
    )
    assert schema.dense_widths == (1, 3, 1, 1, 1)
    given = {"plain": [5.0, 1.0], "bins": [None, 20.0], "rank": [0.25, 99.0], "one": [-4.0, 8.0], "count": [7, None]}
    middle = (1.5 / 3 - 0.5) * math.sqrt(12)
    wanted = [[2.0, 1.0, 0.5, 0.0, middle, -1.0, math.log(8)], [0.0, 1.0, 1.0, 39 / 19, math.sqrt(3), 2.0, 0.0]]
    torch.testing.assert_close(batch_of(schema, given), torch.tensor(wanted))


def test_quantiles_of_the_rows_that_they_were_taken_from_are_uniform() -> None:
    values = np.exp(3 * np.random.default_rng(0).normal(size=20_000))
    found = Quantiles.of(values, 200).scaled(values)
    assert abs(found.mean()) < 1e-3 and abs(found.std() - 1) < 2e-3
    shares = np.histogram(found, 10, (-math.sqrt(3), math.sqrt(3)))[0] / len(values)
    assert np.abs(shares - 0.1).max() < 2e-3


def test_a_value_of_most_rows_leaves_bins_for_the_others() -> None:
    draw = np.random.default_rng(0)
    values = np.where(draw.random(10_000) < 0.92, 0.0, 1 + draw.random(10_000))
    edges = np.array(PiecewiseLinear.of(values, 16).edges)
    counts = np.histogram(values, edges)[0]
    assert len(edges) == 17 and edges[0] == 0 and counts[0] >= 9_100
    assert counts[1:].max() - counts[1:].min() <= 2, "what is left is shared evenly"
    # Two such values, one in the middle; and fewer values than bins, each of which is an edge.
    values[:3000] = 1.5
    edges = np.array(PiecewiseLinear.of(values, 16).edges)
    assert {0.0, 1.5} <= set(edges) and len(edges) >= 16
    assert PiecewiseLinear.of(np.repeat([3.0, 1.0, 7.0], (90, 1, 9)), 16).edges == (1.0, 3.0, 7.0)
    drawn = draw.normal(size=1000)
    assert PiecewiseLinear.of(drawn, 16).edges == tuple(np.quantile(drawn, np.linspace(0, 1, 17)).tolist())


@pytest.mark.parametrize("kind", [PiecewiseLinear, Quantiles])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "a bin has two, but there are 0. Give two or more"),
        ((1.0,), "a bin has two, but there are 1. Give two or more"),
        ((1.0, 2.0, 2.0), "edge 2 is 2.0, after 2.0; they must rise. Sort, drop repeats"),
        ((1.0, 0.0), "edge 1 is 0.0, after 1.0; they must rise. Sort, drop repeats"),
        ((0.0, math.inf), "edge 1 is inf; each must be a finite number"),
        ((math.nan, 1.0), "edge 0 is nan; each must be a finite number"),
    ],
)
def test_edges_that_are_refused(kind: Any, given: tuple[float, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(edges=given)
    assert str(caught.value) == f"{kind.__name__}.edges: {said}"


def test_a_mean_beside_an_encoding_is_refused_as_it_would_not_be_read() -> None:
    with pytest.raises(ConfigError) as caught:
        Dense(name="x", mean=2.0, encoding=Quantiles(edges=EDGES))
    assert str(caught.value) == "feature 'x': mean and std are not read beside an encoding. Leave them out"


@pytest.mark.parametrize("kind", [PiecewiseLinear, Quantiles])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_no_number_is_refused_in_data_and_requests(kind: Any, value: float) -> None:
    schema = schema_of(Dense(name="x", encoding=kind(edges=EDGES)))
    with pytest.raises(DataError, match=re.escape(f"t: feature 'x' is {value} at row 1; it must be a finite number")):
        batch_of(schema, {"x": [1.0, value]})
    with pytest.raises(ValidationError):
        row_model(schema)(x=value, item=1)


def test_a_request_holds_what_float32_can_place() -> None:
    schema = schema_of(Dense(name="x", encoding=PiecewiseLinear(edges=EDGES)))
    said = row_model(schema).model_json_schema()["properties"]["x"]
    for end in (said["minimum"], said["maximum"]):
        assert row_model(schema)(x=end * 0.999, item=1)
        assert torch.isfinite(batch_of(schema, {"x": [end * 0.999]})).all()
        with pytest.raises(ValidationError, match="float32"):
            row_model(schema)(x=end * 1.001, item=1)


def test_it_survives_json() -> None:
    feature = Dense(name="x", encoding=PiecewiseLinear(edges=EDGES))
    assert config.from_dict(json.loads(json.dumps(config.to_dict(feature)))) == feature


def test_a_factorisation_machine_has_one_field_for_a_feature() -> None:
    schema = schema_of(Dense(name="a"), Dense(name="x", encoding=PiecewiseLinear(edges=EDGES)))
    tower: Any = DeepFM(dim=4, deep=()).tower(schema).requires_grad_(False)
    dense, row = torch.tensor([[2.0, 1.0, 0.5, 0.0]]), torch.randn(1, 4)
    fields = [2 * tower.dense_vectors[0], tower.dense_vectors[1] + 0.5 * tower.dense_vectors[2], row[0, 1:]]
    tower.dense_weight.data = torch.tensor([0.1, 0.2, 0.3, 0.4])
    pairs = sum(float(fields[i] @ fields[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    deep = float(tower.deep(torch.cat(fields).unsqueeze(0)))
    wanted = float(row[0, 0]) + 0.2 + 0.2 + 0.15 + pairs + deep
    assert float(tower(dense, row)) == pytest.approx(wanted, rel=1e-5)


def stored(folder: Path, later: float = 100.0) -> Interactions:
    """Rows whose numbers are `later` times as large once training is over."""
    draw, rows = np.random.default_rng(0), 3000
    x = draw.random(rows) * np.where(np.arange(rows) < 0.8 * rows, 1, later)
    label = (np.floor(8 * x) % 2).astype(int)
    table = {"x": x, "same": [3.0] * rows, "item": draw.integers(0, 10, rows), "label": label, "at": np.arange(rows)}
    pq.write_table(pa.table(table), folder / "rows.parquet", row_group_size=500)
    return Interactions(source=str(folder / "rows.parquet"), schema=schema_of(Dense(name="x", std=9.0)))


def test_edges_come_from_training_rows_alone(tmp_path: Path) -> None:
    found = stored(tmp_path).encoded(bins=8)
    (feature,) = found.schema.dense
    assert isinstance(feature.encoding, PiecewiseLinear)
    assert (
        len(feature.encoding.edges) == 9 and max(feature.encoding.edges) <= 1 and (feature.mean, feature.std) == (0, 1)
    )
    assert np.abs(np.diff(feature.encoding.edges) - 1 / 8).max() < 0.02
    assert found.encoded(bins=4) == found  # it has one already
    again = found.encoded(Quantiles, bins=4, features=("x",)).schema.dense[0].encoding
    assert isinstance(again, Quantiles) and len(again.edges) == 5


def test_data_that_have_no_edges_are_refused(tmp_path: Path) -> None:
    data = stored(tmp_path)
    with pytest.raises(ConfigError, match="^encoded: 'y' is no Dense feature of the schema"):
        data.encoded(features=("y",))
    with pytest.raises(ConfigError, match="^encoded: bins must be at least 1, got 0$"):
        data.encoded(bins=0)
    same = replace(data, schema=schema_of(Dense(name="same")))
    with pytest.raises(DataError, match="^feature 'same': PiecewiseLinear: edges need two different finite"):
        same.encoded()


@pytest.mark.parametrize("model", [DLRM(dim=4, bottom=(16,), top=(16,)), DCNv2(dim=4, rank=4), DeepFM(dim=8)])
def test_an_export_answers_raw_values_as_the_trainer_did(model: Any, tmp_path: Path) -> None:
    data = stored(tmp_path, later=1.0).encoded(bins=8)
    run = Run(
        name="encoded",
        model=model,
        data=data,
        parallel=Parallel(dense="ddp"),
        global_batch=64,
        duration=Duration(epochs=2),
        evaluation=Evaluation(monitor="log_loss"),
        handoff=Handoff(rows=300),
        storage=str(tmp_path / "runs"),
    )
    result = train(run)
    said = json.loads((Path(run.folder) / "predictions.json").read_text())["predictions"]
    rows = data.open().raw("test", 0, 300, ["x", "item"]).to_pylist()
    assert np.abs(np.array(Predictor(result["export"]).predict(rows)) - said).max() < 1e-6
    assert np.std(said) > 1e-3
