"""How large numbers of a request may be: what is within gives numbers, what is far beyond does not."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from rtrain.batch import Batch
from rtrain.data.encode import encode
from rtrain.encodings import LARGEST, Log1p, PiecewiseLinear, Quantiles
from rtrain.export.reach import largest_of
from rtrain.export.request import json_schema, row_model
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.dlrm import DLRM
from rtrain.models.ranking import RankingConfig
from rtrain.schema import Dense, Id, IdList, IdSequence, Schema
from rtrain.vector import Embedding

NUMBERS = (
    Dense(name="price", mean=3.0, std=2.0),
    Dense(name="age", encoding=PiecewiseLinear(edges=(0.0, 1.0, 5.0)), missing=1.0),
    Dense(name="clicks", encoding=Log1p()),
    Dense(name="rank", encoding=Quantiles(edges=(0.0, 1.0, 2.0))),
    Embedding(name="vector", dim=3),
)
SCHEMA = Schema(
    features=(Id(name="user", rows=50), IdList(name="tags", rows=20, max_length=4, weights="much"), *NUMBERS)
)


def row_at(schema: Schema, largest: float, draw: np.random.Generator) -> dict[str, object]:
    """Numbers at either end of what is within it."""

    def end(low: float, high: float) -> float:
        return float((low, high)[draw.integers(2)])

    row: dict[str, object] = {f.name: end(*f.reach(largest)) for f in schema.dense if isinstance(f, Dense)}
    row |= {"user": int(draw.integers(50)), "tags": draw.integers(0, 20, 4).tolist()}
    return row | {
        "vector": [end(-largest, largest) for _ in range(3)],
        "much": [end(-largest, largest) for _ in range(4)],
    }


def batch_of(rows: list[dict[str, object]]) -> Batch:
    table = pa.Table.from_pylist(rows, schema=SCHEMA.arrow(label=False))
    return encode(table, SCHEMA, label=False, where="here", first_row=0).batch(global_rows=len(rows))


@pytest.mark.parametrize(
    "config", [DLRM(dim=8, bottom=(16, 8)), DCNv2(dim=8), DeepFM(dim=8)], ids=lambda c: type(c).__name__
)
def test_what_is_within_gives_numbers(config: RankingConfig) -> None:
    model = config.build(SCHEMA, seed=0, table_device="cpu").eval()
    largest = largest_of(SCHEMA, model)
    assert 1e6 <= largest < LARGEST and np.log10(largest) == pytest.approx(round(np.log10(largest)))
    draw, row = np.random.default_rng(3), row_model(SCHEMA, largest)
    within = [row_at(SCHEMA, largest, draw) for _ in range(500)]
    for one in within:
        row(**one)
    assert torch.isfinite(model(batch_of(within))).all()
    beyond = [row_at(SCHEMA, min(largest * 1e3, LARGEST), draw) for _ in range(500)]
    assert not torch.isfinite(model(batch_of(beyond))).all(), "the bound is far below what it has to be"


def test_the_schema_has_the_bounds_that_rows_are_held_to() -> None:
    said = row_model(SCHEMA, 1e9).model_json_schema()["properties"]
    assert (said["price"]["minimum"], said["price"]["maximum"]) == (3 - 2e9, 3 + 2e9)
    assert said["age"]["anyOf"][0] | {"type": "number"} == {"type": "number", "minimum": -1e9, "maximum": 1 + 4e9}
    assert said["clicks"]["maximum"] == np.finfo(np.float64).max
    assert said["vector"]["items"] | {"type": "number"} == {"type": "number", "minimum": -1e9, "maximum": 1e9}
    ends = {"price": 3 + 2e9, "age": 1 + 4e9, "clicks": 1e300, "rank": -1e300, "vector": [1e9] * 3}
    whole = {"user": 1, "tags": [1], "much": [-1e9], **ends}
    row_model(SCHEMA, 1e9)(**whole)
    for change, why in (
        ({"price": np.nextafter(3 + 2e9, 1e300)}, "from -2e+09 to 2e+09, beyond which the model gives none"),
        ({"age": 1e30}, "beyond which the model gives none"),
        ({"vector": [0.0, 0.0, 2e9]}, "less than or equal to 1000000000"),
        ({"much": [-2e9]}, "greater than or equal to -1000000000"),
    ):
        with pytest.raises(ValueError, match=why.replace("+", r"\+")):
            row_model(SCHEMA, 1e9)(**whole | change)
    assert json_schema(SCHEMA)["properties"]["price"]["maximum"] == 3 + 2 * LARGEST, "of no weights"


def test_a_std_beyond_what_float64_holds_makes_no_infinite_bound() -> None:
    assert Dense(name="x", std=1e300).reach() == (-np.finfo(np.float64).max, np.finfo(np.float64).max)


def test_what_overflows_at_plausible_numbers_is_not_bounded() -> None:
    """Else real values would be refused because others are too large."""

    def half(batch: Batch) -> torch.Tensor:
        return (batch.dense.to(torch.float16).sum(dim=1) * 2).float()

    assert largest_of(SCHEMA, half) == LARGEST
    assert largest_of(SCHEMA, lambda batch: torch.full((batch.rows,), torch.nan)) == LARGEST


def test_what_reads_no_number_is_not_asked_and_what_errs_is_not_bounded() -> None:
    asked = list[int]()

    def errs(batch: Batch) -> torch.Tensor:
        asked.append(batch.rows)
        raise RuntimeError("it errs where it is served")

    assert largest_of(Schema(features=(Id(name="user", rows=3),)), errs) == LARGEST and not asked
    assert largest_of(SCHEMA, errs) == LARGEST and asked == [64]
    long = Schema(features=(IdSequence(name="had", rows=9, max_length=8192), Dense(name="price")))
    assert largest_of(long, errs) == LARGEST and asked[-1] == 8
