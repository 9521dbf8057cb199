import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain import config
from rtrain.data import ByTime, Interactions
from rtrain.data.holdout import Random
from rtrain.data.movielens import GENDERS, GENRES, OCCUPATIONS
from rtrain.data.parquet import ParquetRows
from rtrain.errors import ConfigError, DataError
from rtrain.schema import Dense, Id, IdList, IdSequence, Schema

Write = Callable[..., str]
Make = Callable[..., pa.Table]


def test_a_data_set_has_rows_ranges_and_raw_rows(write: Write, make: Make, schema: Schema) -> None:
    data = Interactions(source=write(1000, files=2), schema=schema).open()
    assert sum(data.rows(split) for split in ("train", "valid", "test")) == 1000
    start, stop = data.ranges["valid"]
    assert data.rows("valid") == stop - start
    assert data.raw("valid", 3, 9).equals(make(1000).slice(start + 3, 6))
    with pytest.raises(
        DataError, match=rf"split 'valid' has rows 0\.\.{stop - start - 1}, but 5\.\.{stop - start} are"
    ):
        data.raw("valid", 5, stop - start + 1)


def test_the_fingerprint_changes_with_whatever_a_cursor_depends_on(write: Write, schema: Schema) -> None:
    plain = Interactions(source=write(1000), schema=schema)
    first = plain.open().fingerprint
    assert first == plain.open().fingerprint
    assert first == replace(plain, prefetch=0, window_rows=5000).open().fingerprint
    others = {
        replace(plain, split=ByTime(valid=0.2)).open().fingerprint,
        replace(plain, window_rows=300).open().fingerprint,
        replace(plain, window_rows=200).open().fingerprint,
    }
    write(1000, group=50)
    others.add(plain.open().fingerprint)
    assert len(others | {first}) == 5


def test_the_config_survives_json_and_overrides(schema: Schema) -> None:
    data = Interactions(source="ml-100k", schema=schema)
    config.validate(data)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(data)))) == data
    assert config.override(data, {"split.valid": "0.2", "prefetch": "0"}).split == ByTime(valid=0.2)


def test_it_reads_any_storage(schema: Schema, make: Make) -> None:
    with fsspec.open("memory://shop/rows.parquet", "wb") as file:
        pq.write_table(make(300), file)
    data = Interactions(source="memory://shop/rows.parquet", schema=schema).open()
    assert sum(b.rows for b in data.scan("test", global_batch=8, rank=0, world_size=1)) == data.rows("test")


def test_movielens_opens_by_its_name(ml100k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTRAIN_CACHE", str(ml100k.parent.parent))
    schema = Schema(
        features=(
            Id(name="user_id", entity="user", rows=944),
            Id(name="item_id", entity="item", rows=1683),
            Dense(name="age", entity="user", mean=33, std=12, missing=33),
            Id(name="gender", entity="user", vocabulary=GENDERS),
            Id(name="occupation", entity="user", vocabulary=OCCUPATIONS),
            IdList(name="genres", entity="item", vocabulary=GENRES),
            Dense(name="release_year", entity="item", mean=1990, std=14, missing=1990),
            Id(name="hour", rows=24),
            IdSequence(name="history", entity="user", rows=1683, table="item_id", max_length=20),
        ),
        group="user_id",
        time="timestamp",
    )
    data = Interactions(source="ml-100k", schema=schema).open()
    assert sum(data.rows(s) for s in ("train", "valid", "test")) == 100_000
    assert abs(data.rows("test") - 10_000) < 20 and abs(data.rows("valid") - 10_000) < 20
    times = [data.raw(s, 0, data.rows(s)).column("timestamp").to_numpy() for s in ("train", "valid", "test")]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()
    for split in ("train", "valid", "test"):
        for batch in data.scan(split, global_batch=50_000, rank=0, world_size=1):
            lengths = batch.ids.lengths.view(len(batch.ids.keys), -1)
            # No word is unknown, so no vocabulary id is 0.
            values = dict(zip(batch.ids.keys, batch.ids.values.split(lengths.sum(1).tolist()), strict=True))
            assert all(values[name].min() > 0 for name in ("gender", "occupation", "genres"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "ml-100"}, r"data\.source: there is no data set 'ml-100'; did you mean 'ml-100k'\?"),
        ({"source": "no/such.parquet"}, r"such\.parquet: no such file or folder\. Check data\.source"),
        ({"source": " "}, r"data\.source: it is empty"),
        ({"schema": Schema(features=(Id(name="itm", rows=9),), time="time")}, r"column 'itm' is missing; did you mean"),
        (
            {"schema": Schema(features=(Id(name="gender", rows=9),), time="time")},
            r"'gender' is string, but .* needs int64",
        ),
        (
            {"schema": Schema(features=(Id(name="item", rows=100),), time="tim")},
            r"\(schema\.time\) is missing; did you",
        ),
        (
            {"schema": Schema(features=(Id(name="item", rows=100),))},
            r"schema\.time: it is empty, but data\.split=ByTime",
        ),
    ],
)
def test_what_cannot_be_opened_is_refused(write: Write, schema: Schema, change: dict[str, Any], message: str) -> None:
    source = write(100)
    with pytest.raises((DataError, ConfigError), match=message) as error:
        Interactions(**({"source": source, "schema": schema} | change)).open()
    assert "\n" not in str(error.value)


def test_training_on_the_last_rows_leaves_the_other_splits_as_they_are(write: Write, schema: Schema) -> None:
    plain = Interactions(source=write(1000), schema=schema)
    whole, cut = plain.open(), replace(plain, train_rows=30).open()
    first, stop = whole.ranges["train"]
    assert cut.ranges == {**whole.ranges, "train": (stop - 30, stop)}
    assert cut.numbers("train") == range(stop - 30, stop)
    assert cut.fingerprint != whole.fingerprint, "a cursor of the one counts other rows in the other"
    assert replace(plain, train_rows=stop - first + 1).open().ranges == whole.ranges


@pytest.mark.parametrize("field", ["window_rows", "prefetch", "train_rows"])
def test_settings_below_their_least_are_refused(schema: Schema, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field}: must be at least"):
        Interactions(source="x", schema=schema, **{field: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("split", [ByTime(), Random()], ids=["by time", "by chance"])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("label", 7, "label 'label' is 7.0 at row 950; it must be"),
        ("item", 100, "feature 'item' has id 100 at row 950"),
        ("user", -1, "feature 'user' has id -1 at row 950"),
        ("history", [3, 100], "feature 'history' has id 100 at row 950"),
    ],
)
def test_a_row_of_any_split_that_cannot_be_used_is_refused_before_training(
    write: Write, make: Make, schema: Schema, split: Any, column: str, value: Any, said: str, monkeypatch: Any
) -> None:
    values = make(1000).column(column).to_pylist()
    values[950] = value
    path = write(1000, group=50, **{column: pa.array(values)})
    read = list[int]()
    plain = ParquetRows.read
    monkeypatch.setattr(ParquetRows, "read", lambda self, start, *rest: read.append(start) or plain(self, start, *rest))
    data = Interactions(source=path, schema=schema, split=split).open()
    before = len(read)
    with pytest.raises(DataError, match=rf"rows\.parquet rows 950\.\.999 \(row group \d+\): {said}"):
        data.refuse_rows()
    assert read[before:] == [950], "that row group alone"


def test_rows_that_are_not_used_may_be_anything(write: Write, make: Make, schema: Schema) -> None:
    labels = make(1000).column("label").to_pylist()
    labels[0] = 7
    path = write(1000, group=50, label=pa.array(labels))
    Interactions(source=path, schema=schema, train_rows=100).open().refuse_rows()
    with pytest.raises(DataError, match="label 'label' is 7.0 at row 0"):
        Interactions(source=path, schema=schema).open().refuse_rows()
