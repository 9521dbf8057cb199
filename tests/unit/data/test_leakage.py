"""Rows that two splits have, planted: refused before a run starts, and allowed where that is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rtrain
from recipes import bpr_movielens, dlrm_movielens, lightgcn_movielens, sasrec_movielens, two_tower_movielens
from rtrain.data import Interactions, leakage
from rtrain.data.feedback import Feedback
from rtrain.data.hashed import hashes
from rtrain.data.holdout import TEST, TRAIN, VALID, LeaveOneOut, Random, RandomPerUser
from rtrain.data.parquet import ParquetRows
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.split import ByTime, Ranges
from rtrain.errors import DataError
from rtrain.schema import Id, Label, Schema

Write = Callable[..., str]
Make = Callable[..., pa.Table]
ROWS = 600


def refused(data: Any) -> str:
    with pytest.raises(DataError) as error:
        data.open().refuse_rows()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2, 2, 1, 0, None, None]),
        pa.array([1, 2, 2, 1, 0, None, None], pa.uint8()),
        pa.array([0.5, 2.0, 2.0, 0.5, 0.0, None, None]),
        pa.array([True, False, False, True, True, None, None]),
        pa.array(["ab", "ba", "ba", "ab", "", None, None]),
        pa.array(["ab", "ba", "ba", "ab", "", None, None]).dictionary_encode(),
        pa.array([b"a", b"b\0", b"b\0", b"a", b"b", None, None]),
        pa.array([[1, 2], [2, 1], [2, 1], [1, 2], [], None, None], pa.list_(pa.int64())),
        pa.array([["a", "b"], ["ab"], ["ab"], ["a", "b"], [], None, None], pa.list_(pa.string())),
        pa.array([1, 2, 2, 1, 0, None, None], pa.timestamp("us")),
        pa.array([1, 2, 2, 1, 0, None, None], pa.date32()),
        pa.array([1, 2, 2, 1, 0, None, None], pa.decimal128(9, 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_rows_have_equal_bits_exactly_where_they_are_equal(column: pa.Array) -> None:
    table = pa.table({"x": column, "y": pa.array([7] * len(column))})
    bits, rows = hashes(table).tolist(), column.to_pylist()
    for one, mine in zip(rows, bits, strict=True):
        for other, theirs in zip(rows, bits, strict=True):
            assert (mine == theirs) == (one == other), f"{one!r} and {other!r}"
    assert hashes(table.slice(2, 4)).tolist() == bits[2:6], "a row's bits are its own, wherever its piece begins"
    assert hashes(pa.concat_tables([table.slice(4), table.slice(0, 4)])).tolist() == bits[4:] + bits[:4]
    assert not set(hashes(table.select(["y", "x"])).tolist()) & set(bits), "columns are told apart by their place"


def of_splits(source: str, schema: Schema) -> tuple[Interactions, dict[str, list[int]]]:
    """Data parted by chance, and the rows (as stored) of each split."""
    data = Interactions(source=source, schema=schema, split=Random(valid=0.2, test=0.2))
    opened = data.open()
    first = {name: opened._rows.file_rows(*opened.ranges[name]).tolist() for name in opened.ranges}  # type: ignore[index]
    return data, first  # type: ignore[return-value]


def planted(make: Make, source: str, *copies: tuple[int, int]) -> None:
    """Write the rows anew, the second of each pair as a copy of the first."""
    order = np.arange(ROWS)
    for original, copy in copies:
        order[copy] = original
    pq.write_table(make(ROWS).take(pa.array(order)), source, row_group_size=100)


def test_a_row_of_two_splits_by_chance_is_refused_with_where_it_is(write: Write, make: Make, schema: Schema) -> None:
    source = write(ROWS)
    data, rows = of_splits(source, schema)
    data.open().refuse_rows()
    one, other = rows["train"][7], rows["test"][3]
    planted(make, source, (one, other), (rows["train"][9], rows["test"][5]), (rows["valid"][1], rows["test"][8]))
    message = refused(data)
    assert "train and test have 2 rows in common, valid and test have 1 row in common, equal in all columns" in message
    pairs = [(one, other), (rows["train"][9], rows["test"][5])]
    assert any(f"such as row {a} of rows.parquet and row {b} of rows.parquet" in message for a, b in pairs)
    assert "Drop the repeated rows, or set data.leakage to 'allow'" in message
    replace(data, leakage="allow").open().refuse_rows()


def test_a_column_that_the_schema_does_not_name_makes_no_other_row(write: Write, make: Make, schema: Schema) -> None:
    source = write(ROWS)
    data, rows = of_splits(source, schema)
    number = pa.array([f"row {n}" for n in range(ROWS)])
    pq.write_table(make(ROWS).append_column("number", number), source, row_group_size=100)
    data.open().refuse_rows()
    planted(make, source, (rows["train"][7], rows["test"][3]))
    pq.write_table(pq.read_table(source).append_column("number", number), source, row_group_size=100)
    message = refused(data)
    assert "train and test have 1 row in common, equal in all columns of the schema" in message
    by_number = replace(schema, features=(*schema.features, Id(name="number", vocabulary=("row 1",))))
    replace(data, schema=by_number).open().refuse_rows()


def test_all_that_the_schema_names_tells_rows_apart(write: Write, make: Make, schema: Schema) -> None:
    source = write(ROWS)
    data, rows = of_splits(source, schema)
    both = rows["train"][7], rows["test"][3]
    planted(make, source, both)
    copy = np.arange(ROWS) == both[1]
    beside = {"weight": 1.0 + copy, "teacher": 1.0 + copy, "liked": copy.astype(float)}
    table = pq.read_table(source)
    for name, values in beside.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, source, row_group_size=100)
    refused(data)
    for names in ({"weight": "weight"}, {"teacher": "teacher"}, {"more_labels": (Label(name="liked"),)}):
        replace(data, schema=replace(schema, **names)).open().refuse_rows()  # type: ignore[arg-type]
    for name, change in (("time", table["time"].to_numpy() + copy), ("label", (table["label"].to_numpy() + copy) % 2)):
        other = table.set_column(table.column_names.index(name), name, pa.array(change))
        pq.write_table(other, source, row_group_size=100)
        data.open().refuse_rows()


def test_where_nothing_tells_persons_apart_the_line_says_so(write: Write, make: Make, schema: Schema) -> None:
    source = write(ROWS)
    _, rows = of_splits(source, schema)
    planted(make, source, (rows["train"][7], rows["test"][3]))
    plain = Interactions(source=source, schema=replace(schema, time="", group=""), split=Random(valid=0.2, test=0.2))
    message = refused(plain)
    assert "names neither time nor group, so that equal rows may be of different persons" in message
    assert "set data.leakage to 'allow'" in message
    assert "neither time nor group" not in refused(replace(plain, schema=schema))
    replace(plain, leakage="allow").open().refuse_rows()


def test_rows_that_no_two_splits_share_are_not_refused(write: Write, make: Make, schema: Schema) -> None:
    source = write(ROWS)
    data, rows = of_splits(source, schema)
    planted(make, source, (rows["train"][0], rows["train"][1]), (rows["test"][0], rows["test"][1]))
    data.open().refuse_rows()
    planted(make, source, (rows["train"][0], rows["test"][1]))
    assert "train and test have 1 row in common" in refused(data)
    few = replace(data, train_rows=len(rows["train"]) - 1)
    few.open().refuse_rows()  # the first row of training is not trained on


def test_of_many_rows_a_share_is_held_against_each_other(
    write: Write, make: Make, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(ROWS)
    data, rows = of_splits(source, schema)
    planted(make, source, *zip(rows["train"], rows["test"], strict=False))
    monkeypatch.setattr(leakage, "MOST_ROWS", ROWS // 4)
    message = refused(data)
    found = int(message.partition("train and test have ")[2].split()[0])
    count = len(rows["test"])
    # Each of the planted pairs is whole in the sample with a chance of a quarter: five standard deviations around it.
    assert abs(found - count / 4) < 5 * (count * 3 / 16) ** 0.5 and "(of a sample of 25.0%)" in message


class OutOfTime(ByTime):
    """Tests on the oldest rows."""

    def part(self, rows: ParquetRows, time: str, user: str = "") -> tuple[ParquetRows, Ranges]:
        return rows, {"train": (200, 400), "valid": (400, rows.rows), "test": (0, 200)}

    def assign(self, feedback: Feedback) -> Any:
        return np.where(feedback.time < 200, VALID, np.where(feedback.time < 400, TRAIN, TEST)).astype(np.int8)


def test_a_split_by_time_that_trains_on_the_future_is_refused(write: Write, schema: Schema, log: Path) -> None:
    data = Interactions(source=write(ROWS), schema=schema)
    data.open().refuse_rows()
    message = refused(replace(data, split=OutOfTime()))
    assert "split by time, train has a row of time 1000138, but valid begins at 1000138" in message, "of one moment"
    replace(data, split=OutOfTime(), leakage="allow").open().refuse_rows()
    pairs = Pairs(source=str(log), users=20, items=90, split=ByTime())
    pairs.open().refuse_rows()
    assert "split by time, train has a row of time 399, but valid begins at 0" in refused(
        replace(pairs, split=OutOfTime())
    )
    replace(pairs, split=OutOfTime(), leakage="allow").open().refuse_rows()


USERS, EACH = 20, 30


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Each of 20 users with 30 items, at 600 moments."""
    return _write(tmp_path, _interactions())


def _interactions() -> pa.Table:
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), EACH)
    item = np.concatenate([draw.permutation(90)[:EACH] for _ in range(USERS)])
    return pa.table({"user_id": user, "item_id": item, "timestamp": draw.permutation(USERS * EACH)})


def _write(folder: Path, table: pa.Table) -> Path:
    pq.write_table(table, folder / "log.parquet")
    return folder / "log.parquet"


SPLITS = (LeaveOneOut(), RandomPerUser(valid=0.3, test=0.3), Random(valid=0.3, test=0.3))


@pytest.mark.parametrize("kind", [Pairs, Graph, Histories])
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: type(split).__name__)
def test_an_interaction_of_two_splits_is_refused_and_a_later_one_is_not(log: Path, split: Any, kind: Any) -> None:
    data = kind(source=str(log), users=USERS, items=90, split=split)
    data.open().refuse_rows()
    table = _interactions()
    last = table.filter(pa.compute.equal(table["user_id"], 4)).sort_by("timestamp").slice(EACH - 1)
    again = pa.concat_tables([table, *[last] * 9])
    _write(log.parent, again)
    message = refused(data)
    item, time = last["item_id"][0], last["timestamp"][0]
    assert f"such as user 4 with item {item} at time {time}: metrics would be" in message
    assert " row in common" in message and "log.parquet: " in message
    replace(data, leakage="allow").open().refuse_rows()
    when = pa.array([*range(USERS * EACH), *range(9000, 9009)])
    _write(log.parent, again.set_column(2, "timestamp", when))
    opened = data.open()
    opened.refuse_rows()
    had = opened.feedback.item[(opened.feedback.user == 4) & (opened.codes == TRAIN)]
    if split == SPLITS[0]:  # nine times later on: the last tests, and the ones before it train
        assert (had == item.as_py()).sum() >= 7
    if kind is Graph:
        trained = opened.codes == TRAIN
        pairs = set(zip(opened.feedback.user[trained].tolist(), opened.feedback.item[trained].tolist(), strict=True))
        assert opened.graph.count == len(pairs), "what was had twice is one edge, in both directions"


def test_without_times_pairs_are_told_apart_by_nothing_and_histories_by_their_places(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("0 1 2 3 2\n1 4 5 6 7\n")
    both: dict[str, Any] = {"source": str(tmp_path / "log.txt"), "users": 2, "items": 9, "time": ""}
    assert "train and test have 1 row in common, such as user 0 with item 2: metrics" in refused(Pairs(**both))
    Pairs(**both, leakage="allow").open().refuse_rows()
    Histories(**both).open().refuse_rows()


def test_who_had_few_items_very_often_did_not_have_all(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("0 1 2 1 2 1 2 1 2 1 2\n1 3 4 5 6\n")
    both: dict[str, Any] = {"source": str(tmp_path / "log.txt"), "users": 2, "items": 9, "time": ""}
    assert Histories(**both).open().rows("train") == 2
    (tmp_path / "log.txt").write_text("0 1 2 1 2 1 2 1 2 1 2\n1 1 2 2 1\n")
    with pytest.raises(DataError, match="user 0 had all 2 items"):
        Histories(**both).open()


def test_a_run_is_refused_before_anything_of_it_is_written(tiny_random: Any) -> None:
    run, folder = tiny_random
    with pytest.raises(DataError, match="train and test have 1 row in common"):
        rtrain.train(run, launcher="inline", quiet=True)
    assert not folder.exists()


@pytest.fixture
def tiny_random(log: Path, tmp_path: Path) -> tuple[Any, Path]:
    table = _interactions()
    last = table.filter(pa.compute.equal(table["user_id"], 4)).sort_by("timestamp").slice(EACH - 1)
    _write(log.parent, pa.concat_tables([table, last, last]))
    changes = {"storage": str(tmp_path / "runs"), "name": "leaks", "data.source": str(log), "parallel.dense": "ddp"}
    changes |= {"tracking.to": ()}
    run = rtrain.override(bpr_movielens.debug(), changes)
    return replace(run, data=replace(run.data, split=LeaveOneOut())), tmp_path / "runs" / "leaks"  # type: ignore[type-var]


@pytest.mark.parametrize(
    "recipe", [bpr_movielens, dlrm_movielens, lightgcn_movielens, sasrec_movielens, two_tower_movielens]
)
def test_movielens_is_not_refused(recipe: Any) -> None:
    for run in (recipe.debug(), recipe.run()):
        run.data.open().refuse_rows()


def test_movielens_rows_parted_by_chance_are_not_refused() -> None:
    data = dlrm_movielens.run().data
    replace(data, split=Random()).open().refuse_rows()  # type: ignore[type-var, attr-defined]
