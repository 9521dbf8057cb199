"""`Moment` and `Age`: what is made of columns of moments, whatever holds them, and what is refused."""

import math
import zoneinfo
from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rtrain import config
from rtrain.batch import Batch
from rtrain.data import Interactions
from rtrain.data.boosted import boosted_of
from rtrain.data.by_user import user_column
from rtrain.data.encode import encode
from rtrain.data.footers import refuse_by_footers
from rtrain.data.parquet import ParquetRows
from rtrain.data.split import ByTime
from rtrain.encodings import LARGEST
from rtrain.errors import ConfigError, DataError
from rtrain.export.request import json_schema, row_model, rows_of
from rtrain.schema import Age, Dense, Id, IdSequence, Moment, Schema

SCHEMA = Schema(
    features=(
        Dense(name="price"),
        Moment(name="hour", part="hour", zone="Europe/Berlin"),
        Id(name="item", entity="item", rows=9),
        Age(name="age", entity="item", column="released", mean=2.0, std=4.0),
        Moment(name="born", part="weekday", column="released", missing="own"),
        Age(name="member", entity="user", column="joined", missing=99.0, future="zero"),
    ),
    time="at",
)


def seconds(*when: int, zone: str = "UTC") -> int:
    return int(datetime(*when, tzinfo=ZoneInfo(zone)).timestamp())  # type: ignore[arg-type, misc]


AT = seconds(2023, 10, 29, 1, 30)  # 2:30 in Berlin for the second time that night
RIGHT = {"price": 1.0, "item": 3, "at": AT, "released": AT - 9, "joined": AT - 99, "label": 1.0}


def batch_of(rows: list[dict[str, Any]], schema: Schema = SCHEMA) -> Batch:
    table = pa.Table.from_pylist(rows, schema.arrow(label=True))
    return encode(table, schema, label=True, where="rows", first_row=0).batch(global_rows=len(rows))


def ids_of(column: pa.Array, feature: Moment) -> list[int]:
    schema = Schema(features=(feature,), time="at")
    table = pa.table({feature.column or "at": column, "label": np.zeros(len(column))})
    return encode(table, schema, label=True, where="t", first_row=0).singles[:, 0].tolist()


def test_a_batch_has_hours_among_the_ids_and_ages_among_the_numbers() -> None:
    assert SCHEMA.tables == {"hour": 24, "item": 9, "born": 8} and SCHEMA.dense_widths == (1, 1, 1)
    assert SCHEMA.arrow(label=True).names == ["price", "item", "released", "joined", "at", "label"]
    batch = batch_of([RIGHT, RIGHT | {"joined": None}, RIGHT | {"joined": AT + 1, "released": AT}])
    assert batch.ids.keys == ("hour", "item", "born")
    assert batch.ids.values.tolist() == [2, 2, 2, 3, 3, 3, 6, 6, 6]  # a Sunday
    ages = [[(math.log(10) - 2) / 4, math.log(100)], [(math.log(10) - 2) / 4, math.log(100)], [-0.5, 0]]
    np.testing.assert_allclose(batch.dense.numpy(), [[1, *age] for age in ages], rtol=1e-6)


HOURS = [
    ("UTC", (2023, 10, 29, 1, 30), 1, 6),
    ("Europe/Berlin", (2023, 10, 29, 0, 30), 2, 6),  # before the clocks are put back, and after
    ("Europe/Berlin", (2023, 10, 29, 1, 30), 2, 6),
    ("Europe/Berlin", (2023, 10, 29, 22, 59, 59), 23, 6),
    ("Europe/Berlin", (2023, 10, 29, 23), 0, 0),
    ("Europe/Berlin", (2024, 3, 31, 0, 59, 59), 1, 6),  # the hour that there is not
    ("Europe/Berlin", (2024, 3, 31, 1), 3, 6),
    ("Europe/Berlin", (2050, 7, 4, 12), 14, 0),  # behind the last change that the zone's file lists
    ("America/New_York", (2023, 7, 4, 3, 59), 23, 0),
    ("Asia/Kathmandu", (2023, 7, 3, 18, 15), 0, 1),  # 5:45 ahead
    ("Australia/Lord_Howe", (2023, 4, 1, 14, 59, 59), 1, 6),  # half an hour back, at 2
    ("Australia/Lord_Howe", (2023, 4, 1, 15), 1, 6),
    ("America/St_Johns", (2010, 3, 14, 3, 30, 59), 0, 6),
    ("America/St_Johns", (2010, 3, 14, 3, 31), 1, 6),  # a minute past midnight, in the middle of an hour of UTC
    ("Europe/Berlin", (1, 1, 1), 0, 0),
    ("America/New_York", (1, 1, 1), 19, 6),  # of the year before the first
    ("Asia/Tokyo", (9999, 12, 31, 23, 59, 59), 8, 5),
]


@pytest.mark.parametrize(("zone", "when", "hour", "day"), HOURS)
def test_hours_and_days_by_hand(zone: str, when: tuple[int, ...], hour: int, day: int) -> None:
    column = pa.array([seconds(*when)])
    assert ids_of(column, Moment(name="x", part="hour", zone=zone)) == [hour]
    assert ids_of(column, Moment(name="x", part="weekday", zone=zone)) == [day]


@settings(deadline=None)
@given(
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca"]),
    st.lists(st.integers(-3_000_000_000, 9_000_000_000), max_size=20),
)
@example("Europe/Amsterdam", [-1_000_000_000 + n for n in range(3)])
def test_they_are_those_of_the_clock_in_that_zone(zone: str, when: list[int]) -> None:
    clock = [datetime.fromtimestamp(second, UTC).astimezone(ZoneInfo(zone)) for second in when]
    column = pa.array(when, pa.int64())
    assert ids_of(column, Moment(name="x", part="hour", zone=zone)) == [t.hour for t in clock]
    assert ids_of(column, Moment(name="x", part="weekday", zone=zone)) == [t.weekday() for t in clock]


def test_a_part_of_a_second_is_of_its_beginning() -> None:
    assert ids_of(pa.array([-0.5, 0.0, 0.5]), Moment(name="x", part="weekday")) == [2, 3, 3]  # 1969's last day


KINDS = [pa.int64(), pa.float64(), pa.timestamp("s"), pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("us")]


@pytest.mark.parametrize("kind", [*KINDS, pa.timestamp("ns"), pa.date32()])
def test_a_request_says_the_same_as_the_row_whatever_holds_its_moments(kind: pa.DataType) -> None:
    def column(*when: float | None) -> pa.Array:
        if pa.types.is_date(kind):
            days = [None if x is None else date.fromordinal(719_163 + int(x) // 86_400) for x in when]
            return pa.array(days, kind)
        whole = pa.types.is_integer(kind) or getattr(kind, "unit", "") == "s"
        each = 10 ** {"ms": 3, "us": 6, "ns": 9}.get(getattr(kind, "unit", ""), 0)
        if pa.types.is_floating(kind):
            return pa.array(when, kind)
        values = [None if x is None else math.floor(x) * each + (0 if whole else each // 2) for x in when]
        return pa.array(values, pa.int64()).cast(kind)

    table = pa.table(
        {
            "price": [1.0, 2.0, 3.0],
            "item": [1, 2, 3],
            "at": column(AT + 0.5, AT + 90_000.5, AT - 0.5),
            "released": column(AT - 1e7, AT + 0.75, AT - 1.5),
            "joined": column(None, 0.0, -0.25),
            "label": [0, 1, 0],
        }
    )
    trained = encode(table, SCHEMA, label=True, where="t", first_row=0)
    day = pa.types.is_date(kind)
    assert trained.singles[:, 0].tolist() == ([2, 1, 2] if day else [2, 3, 2])
    assert trained.dense[:, 1].tolist() == pytest.approx(
        [(math.log1p(x) - 2) / 4 for x in ((10_022_400, 86_400, 0) if day else (10_000_000, 90_000, 1))]
    )
    asked = rows_of(table, SCHEMA)
    assert all(isinstance(row["at"], int) for row in asked) and "joined" not in asked[0]
    Row: Any = row_model(SCHEMA)
    rows = pa.Table.from_pylist([Row(**row).model_dump() for row in asked], SCHEMA.arrow(label=False))
    served = encode(rows, SCHEMA, label=False, where="request", first_row=0)
    np.testing.assert_array_equal(served.dense, trained.dense)
    np.testing.assert_array_equal(served.singles, trained.singles)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"at": None}, "time 'at' is null at row 2. Fill it, or drop the row"),
    ({"released": None}, "feature 'age': its 'released' is null at row 2. Give Age(missing=...) the seconds to use"),
    (
        {"released": AT + 1},
        f"feature 'age': its 'released' is {AT + 1} at row 2, behind the row's own moment, {AT}: the",
    ),
    ({"released": AT * 1000}, f"feature 'age': its 'released' is {AT}000 at row 2, which in seconds since 1970 is of"),
    ({"joined": -(2**60)}, f"feature 'member': its 'joined' is -{2**60} at row 2, which in seconds since 1970 is of"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_moment_that_cannot_be_is_named_with_feature_column_and_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        batch_of([RIGHT, RIGHT, RIGHT | change])
    assert str(error.value).startswith(f"rows: {message}") and "\n" not in str(error.value)
    with pytest.raises(ValidationError) as refused:
        row_model(SCHEMA)(**{name: value for name, value in (RIGHT | change).items() if name != "label"})
    assert len(refused.value.errors()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("name", ["at", "released", "joined"])
def test_a_float_that_is_no_moment_is_refused(name: str, value: float) -> None:
    table = pa.Table.from_pylist([RIGHT, RIGHT]).set_column(0, "price", pa.array([1.0, 1.0]))
    table = table.set_column(table.column_names.index(name), name, pa.array([float(AT - 1), value]))
    with pytest.raises(DataError, match=f"'{name}' is {value} at row 1; it must be seconds".replace("+", r"\+")):
        encode(table, SCHEMA, label=True, where="t", first_row=0)


def test_columns_that_hold_no_moments_are_refused() -> None:
    table = pa.Table.from_pylist([RIGHT])
    for name in ("at", "released", "joined"):
        place = table.column_names.index(name)
        for kind in (pa.string(), pa.list_(pa.int64()), pa.bool_(), pa.uint64()):
            other = table.set_column(place, name, pa.nulls(1, kind))
            with pytest.raises(DataError, match=rf"column '{name}' is .*, but the schema needs int64\. Cast") as error:
                encode(other, SCHEMA, label=True, where="t", first_row=0)
            assert "\n" not in str(error.value)
        with pytest.raises(DataError, match=f"column '{name}' is missing"):
            encode(table.drop_columns([name]), SCHEMA, label=True, where="t", first_row=0)
    timed = Schema(features=(Moment(name="h", part="hour"), IdSequence(name="i", rows=9, times="had")), time="at")
    rows = pa.table({"i": [[1]], "had": [[1]], "at": [2.0], "label": [0]})
    with pytest.raises(DataError, match="column 'at' is double, but the schema needs int64"):
        encode(rows, timed, label=True, where="t", first_row=0)


def test_a_caller_is_told_what_a_request_has() -> None:
    told = json_schema(SCHEMA)
    assert list(told["properties"]) == ["price", "item", "released", "joined", "at"]
    assert told["required"] == ["price", "item", "released", "at"]  # an age needs what a weekday could do without
    assert "age, born" in told["properties"]["released"]["description"]
    alone = Schema(features=(Moment(name="h", part="hour", missing="own"),), time="at")
    assert row_model(alone)().model_dump() == {"at": None}
    assert ids_of(pa.nulls(2), alone.made[0]) == [24, 24]  # type: ignore[arg-type]
    assert ids_of(pa.array([0, None]), alone.made[0]) == [0, 24]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"feature 'h': its 'at' is null at row 1\. Give Moment\(missing=\"own\"\), or"):
        ids_of(pa.array([0, None]), Moment(name="h", part="hour"))


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Moment, {"part": "hour", "zone": "Europe/Berln"}, "zone 'Europe/Berln' is no time zone known here; did you mean"),
    (Moment, {"part": "hour", "zone": "../etc"}, "zone '../etc' is no time zone known here. Give a name as Europe"),
    (Moment, {"part": "hour", "zone": ""}, "zone '' is no time zone known here"),
    (Moment, {"part": "hour", "zone": "Europe"}, "zone 'Europe' is no time zone known here"),
    (Age, {"column": ""}, "its column is empty"),
    (Age, {"column": "c", "std": 0.0}, "std must be positive, got 0"),
    (Age, {"column": "c", "missing": -1.0}, "missing must be seconds of at least 0, got -1.0"),
    (Age, {"column": "c", "missing": math.nan}, "missing must be seconds of at least 0, got nan"),
    (Age, {"column": "c", "std": 1e-39}, "float32 cannot hold what mean=0.0 and std=1e-39 make"),
    (Age, {"column": "c", "mean": 10 * LARGEST}, "float32 cannot hold what mean"),
    (Age, {"column": "c", "mean": math.nan}, "float32 cannot hold what mean"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), REFUSED)
def test_features_that_cannot_be_are_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind(name="x", **fields)
    assert str(error.value).startswith(f"feature 'x': {message}") and "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("tzdata") is not None, reason="the package tzdata is a list of zones")
def test_a_machine_without_zones_is_told_so_and_has_utc() -> None:
    ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath(to=())
    try:
        assert ids_of(pa.array([3600]), Moment(name="x", part="hour")) == [1]
        with pytest.raises(ConfigError, match="known here: this machine has no list of zones. Do `pip install tzdata`"):
            Moment(name="x", part="hour", zone="Europe/Berlin")
    finally:
        zoneinfo.reset_tzpath()


HOUR, AGE = Moment(name="x", part="hour"), Age(name="x", column="c")


@pytest.mark.parametrize(
    ("features", "fields", "message"),
    [
        ((HOUR,), {}, "schema.time: it is empty, but feature 'x' reads the row's own moment"),
        ((AGE,), {}, "schema.time: it is empty, but feature 'x' reads the row's own moment"),
        ((AGE,), {"time": "c"}, "feature 'x': its column is schema.time, 'c', of which every age is 0"),
        ((HOUR,), {"time": "x"}, "feature 'x': it is made of a column, and that name is a column's of moments"),
        ((HOUR,), {"time": "t", "group": "x"}, "schema.group: 'x' is not an Id feature"),
        ((AGE, Dense(name="c")), {"time": "t"}, "schema: the name 'c' is used twice"),
        ((AGE, IdSequence(name="i", rows=9, times="c")), {"time": "t"}, "schema: the name 'c' is used twice"),
        ((HOUR, Id(name="i", rows=9, table="x")), {"time": "t"}, "features of table 'x' disagree on its rows: 24, 9"),
    ],
)
def test_schemas_that_cannot_be_are_refused(features: Any, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Schema(features=features, **fields)


def test_they_are_overridden_and_stored_as_any_feature() -> None:
    told = config.override(SCHEMA, {"features.1.zone": "Asia/Tokyo", "features.3.future": "zero"})
    assert told.features[1] == Moment(name="hour", part="hour", zone="Asia/Tokyo")
    assert config.from_dict(config.to_dict(told)) == told
    with pytest.raises(ConfigError, match="did you mean 'hour'"):
        config.override(SCHEMA, {"features.1.part": "hours"})


ROWS = 600


@pytest.fixture
def source(tmp_path: Path) -> str:
    at = AT + 3600 * np.arange(ROWS)
    columns = {
        "price": np.ones(ROWS),
        "item": np.arange(ROWS) % 9,
        "at": at,
        "released": at - 100,
        "joined": pa.array([None if n % 5 == 0 else AT for n in range(ROWS)]),
        "hour": np.full(ROWS, 77),  # a column of that name is another
        "label": (at // 3600 % 24 < 12).astype(float),
    }
    path = str(tmp_path / "rows.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def altered(source: str, name: str, row: int, value: Any) -> None:
    table = pq.read_table(source)
    values = table.column(name).to_pylist()
    values[row] = value
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(values, table.schema.field(name).type)), source)


def test_bad_rows_of_any_split_are_refused_before_training(source: str) -> None:
    data = Interactions(source=source, schema=SCHEMA, split=ByTime(valid=0.1, test=0.1))
    data.open().refuse_rows()
    altered(source, "released", 595, AT + 3600 * 595 + 1)
    with pytest.raises(DataError, match=r"feature 'age': its 'released' is \d+ at row 595, behind the row's own") as e:
        data.open().refuse_rows()
    assert "\n" not in str(e.value)


def test_what_lies_behind_all_rows_of_its_group_is_told_by_the_footers(source: str) -> None:
    rows = ParquetRows(source)
    refuse_by_footers(rows, rows.row_groups, SCHEMA)
    altered(source, "joined", 595, AT + 10**9)  # which is let through
    rows = ParquetRows(source)
    refuse_by_footers(rows, rows.row_groups, SCHEMA)
    altered(source, "released", 595, AT + 10**9)
    rows = ParquetRows(source)
    with pytest.raises(DataError, match="'released' is .* at row 595, behind"):
        refuse_by_footers(rows, rows.row_groups, SCHEMA)


def test_metrics_are_sliced_by_hours_and_trees_read_them(source: str) -> None:
    data = Interactions(source=source, schema=SCHEMA, split=ByTime(valid=0.1, test=0.1)).open()
    data.refuse_columns(("hour", "born", "price"), "evaluation.slices")
    coded = data.coded("test", ("hour",))
    start = data.ranges["test"][0]
    clock = [datetime.fromtimestamp(AT + 3600 * n, ZoneInfo("Europe/Berlin")).hour for n in range(start, ROWS)]
    assert [int(coded.text(code)) for code in coded.codes] == clock and not coded.counted
    pair = data.coded("test", ("hour", "born"))
    assert len(pair.counts) == len(set(zip(clock, data.coded("test", ("born",)).codes.tolist(), strict=True)))
    with pytest.raises(ConfigError, match="no column 'age'"):
        data.refuse_columns(("age",), "evaluation.slices")
    joined = Moment(name="joined_on", part="weekday", column="joined", missing="own")
    schema = Schema(features=(Id(name="item", rows=9), joined), time="at")
    other = Interactions(source=source, schema=schema, leakage="allow").open().coded("test", ("joined_on",))
    assert sorted(map(other.text, range(len(other.counts)))) == ["(null)", "6"]
    (trees,) = boosted_of(data, 10_000)
    scored: Any = trees.says("test")
    wanted = data.raw("test", 0, ROWS - start, ["label"])["label"].to_numpy()
    assert ((scored.logits > 0) == wanted).mean() > 0.9  # the label is of the hour alone


def test_a_users_hour_says_nothing_of_who_it_is() -> None:
    features = (Id(name="user", entity="user", rows=9), Moment(name="h", entity="user", column="joined", part="hour"))
    assert user_column(Schema(features=features)) == "user"
