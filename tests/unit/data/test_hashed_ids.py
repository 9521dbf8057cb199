"""Values that nobody has counted, as rows of a table: the same in every process, and spread evenly."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.encode import encode
from rtrain.data.footers import refuse_by_footers
from rtrain.data.hashed import into_keys, into_rows
from rtrain.data.parquet import ParquetRows
from rtrain.errors import ConfigError, DataError
from rtrain.export.request import row_model
from rtrain.keyed import drawn
from rtrain.managed import Managed
from rtrain.schema import Id, IdList, IdSequence, Schema

NUMBERS = [0, 1, -1, 2**63 - 1, -(2**63), 9_007_199_254_740_993, None, 1]
WORDS = ["a", "", "Öl", "a b", None, "b", "a"]


def ids(feature: Id, values: Any, kind: pa.DataType | None = None) -> list[int]:
    """What the model is given of a column."""
    schema = Schema(features=(feature,))
    table = pa.table({feature.name: pa.array(values, kind or feature.arrow_type())})
    found = encode(table, schema, label=False, where="request", first_row=0)
    return (found.lists[0].values if isinstance(feature, IdList) else found.singles[:, 0]).tolist()


def test_a_number_is_its_own_bits_mixed() -> None:
    """As `rtrain.keyed` mixes a key, with Python's whole numbers; a table that is read again must give the same."""
    feature = Id(name="x", rows=1000, hashed="numbers")
    found = ids(feature, NUMBERS)
    by_hand = [0 if v is None else 1 + int(drawn(drawn(np.array([v], np.int64)))[0]) % 999 for v in NUMBERS]
    assert found == by_hand and found[-1] == found[1] and len(set(found)) == 7
    assert ids(feature, [5, -7], pa.int32()) == ids(feature, [5, -7]) == ids(feature, [5, -7], pa.int8())


def test_a_word_has_one_id_however_it_is_stored_and_in_every_process() -> None:
    feature = Id(name="x", rows=1000, hashed="words")
    found = ids(feature, WORDS)
    assert found[4] == 0 and found[0] == found[6] and len(set(found)) == 6 and all(0 <= id < 1000 for id in found)
    assert ids(feature, WORDS, pa.large_string()) == found
    assert ids(feature, WORDS, pa.dictionary(pa.int32(), pa.string())) == found
    script = f"""
import pyarrow as pa
from rtrain.data.hashed import into_rows
print(into_rows(pa.chunked_array([{WORDS[:2]}, {WORDS[2:]}]), 1000).tolist())
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == str(found)


@pytest.mark.parametrize("kind", ["numbers", "words"])
def test_values_are_spread_evenly(kind: str) -> None:
    values = np.arange(200_000) * 4096  # as ids that a shard's number is part of
    column = pa.chunked_array([pa.array(values if kind == "numbers" else [f"item-{v}" for v in values])])
    counts = np.bincount(into_rows(column, 1001), minlength=1001)
    assert counts[0] == 0
    # Chi-squared of 999 degrees of freedom: mean 999, deviation 44.7; five of them.
    assert abs(((counts[1:] - 200) ** 2 / 200).sum() - 999) < 5 * 44.7


def test_lists_have_ids_of_the_same_table_and_no_missing_ones() -> None:
    one = Id(name="item", rows=50, hashed="numbers")
    for kind in (IdList, IdSequence):
        many = kind(name="seen", rows=50, hashed="numbers", table="item")
        assert ids(many, [[7, 2**60], [], None, [7]]) == [*ids(one, [7, 2**60]), *ids(one, [7])]
        with pytest.raises(DataError, match="feature 'seen' has a null in its list at row 1"):
            ids(many, [[1], [None]])


def test_users_who_share_a_row_are_ranked_apart() -> None:
    schema = Schema(features=(Id(name="user", rows=2, hashed="words"),), group="user")
    table = pa.table({"user": ["ann", "bob", None, "ann"]})
    found = encode(table, schema, label=False, where="request", first_row=0)
    assert found.singles[:, 0].tolist() == [1, 1, 0, 1]
    ann, bob, nobody, again = found.group.tolist()
    assert ann == again < 0 and bob < 0 and ann != bob and nobody == 0


def test_a_request_has_the_raw_value() -> None:
    schema = Schema(features=(Id(name="n", rows=9, hashed="numbers"), Id(name="w", rows=9, hashed="words")))
    row = row_model(schema)
    for value in (-(2**63), 2**63 - 1):
        assert row(n=value, w="any").model_dump() == {"n": value, "w": "any"}
    assert row().model_dump() == {"n": None, "w": None}
    for wrong in ({"n": 2**63}, {"n": "a"}, {"w": 3}):
        with pytest.raises(ValueError, match="1 validation error"):
            row(**wrong)


def test_footers_refuse_no_large_number(tmp_path: Path) -> None:
    schema = Schema(features=(Id(name="n", rows=9, hashed="numbers"),))
    pq.write_table(pa.table({"n": [2**62, -5], "label": [0.0, 1.0]}), tmp_path / "rows.parquet")
    stored = ParquetRows(str(tmp_path / "rows.parquet"))
    refuse_by_footers(stored, stored.row_groups, schema)
    with pytest.raises(DataError, match="has id 4611686018427387904"):
        refuse_by_footers(stored, stored.row_groups, Schema(features=(Id(name="n", rows=9),)))


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="feature 'x': hashed needs rows, at least 2, got 1"):
        Id(name="x", rows=1, hashed="words")
    with pytest.raises(ConfigError, match="feature 'x': give either rows"):
        Id(name="x", vocabulary=("a",), rows=9, hashed="words")
    with pytest.raises(DataError, match="column 'x' is string, but the schema needs int64"):
        ids(Id(name="x", rows=9, hashed="numbers"), ["a"], pa.string())


def test_a_managed_value_goes_to_the_model_as_63_bits() -> None:
    how = Managed(every=10)
    feature = Id(name="x", rows=5, hashed="numbers", managed=how)
    found = ids(feature, NUMBERS)
    by_hand = [0 if v is None else int(drawn(drawn(np.array([v], np.int64)))[0]) >> 1 for v in NUMBERS]
    assert found == by_hand and len(set(found)) == 7 and min(found) == 0
    words = ids(IdList(name="x", rows=5, hashed="words", managed=how), [["a", "b"], [], ["a"]])
    assert words[0] == words[2] != words[1] and min(words) > 0
    assert words[:2] == into_keys(pa.chunked_array([["a", "b"]])).tolist()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Id(name="x", rows=5, managed=Managed()), "feature 'x': managed needs hashed='numbers', or 'words'"),
        (lambda: Managed(every=0), "managed.every: must be at least 1, got 0"),
        (lambda: Managed(decay=1.5), "managed.decay: must be from 0 to 1, got 1.5"),
        (lambda: Managed(least=0), "managed.least: must be at least 1, got 0"),
        (
            lambda: Schema(
                features=(
                    Id(name="x", rows=5, hashed="numbers", managed=Managed()),
                    IdList(name="xs", rows=5, hashed="numbers", table="x"),
                )
            ),
            "features of table 'x' disagree on how it is managed",
        ),
    ],
)
def test_what_managed_does_not_go_with(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
