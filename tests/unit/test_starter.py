"""`rtrain init`: what columns are taken for, what is refused, and that what it writes is a run on the data."""

import datetime
import json
import random
import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import rtrain
from rtrain.errors import UserError
from rtrain.export.request import row_model
from rtrain.schema import Dense, Id, IdList, IdSequence
from rtrain.starter import start

ROWS = 400


def table(**columns: Any) -> pa.Table:
    """Rows with a user, an item, a label and a time, and the given columns."""
    drawn = random.Random(0)
    plain: dict[str, Any] = {
        "user_id": [drawn.randrange(20) for _ in range(ROWS)],
        "itemId": [f"i{drawn.randrange(30)}" for _ in range(ROWS)],
        "label": [drawn.randrange(2) for _ in range(ROWS)],
        "time": list(range(ROWS)),
    }
    return pa.table({name: values for name, values in (plain | columns).items() if values is not None})


def written(path: Path, rows: pa.Table) -> str:
    """A file of the kind that its name says."""
    if path.suffix == ".csv":
        pa.csv.write_csv(rows, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    else:
        pq.write_table(rows, path)
    return str(path)


@pytest.fixture
def begin(tmp_path: Path) -> Any:
    """The schema of the recipe made for a table, its first batch read, and what `start` said."""

    def call(rows: pa.Table, kind: str = "csv", **options: Any) -> Any:
        source = written(tmp_path / f"rows.{kind}", rows)
        made = start(source, out=str(tmp_path / "recipe.py"), **options)
        recipe = runpy.run_path(made.recipe, run_name="recipe")
        run = recipe["run"]()
        data = run.data.open()
        batch, _ = next(iter(data.reader("train", global_batch=run.global_batch, seed=0, rank=0, world_size=1)))
        assert run.global_batch - batch.rows in (0, 1)
        run.model.tower(run.data.schema)
        row_model(run.data.schema)
        assert recipe["debug"]().duration.steps == 20
        return run, made

    return call


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_are_taken_for_what_they_hold(begin: Any, kind: str) -> None:
    gap = [None if i % 5 == 0 else i / 7 for i in range(ROWS)]
    words = [None if i % 9 == 0 else "ab"[i % 2] for i in range(ROWS)]
    run, made = begin(
        table(price=gap, hour=[i % 24 for i in range(ROWS)], color=words, age=[i % 60 for i in range(ROWS)]), kind
    )
    by_name = {f.name: f for f in run.data.schema.features}
    assert by_name["user_id"] == Id(name="user_id", entity="user", rows=20)
    assert by_name["itemId"].entity == "item" and len(by_name["itemId"].vocabulary) == 30
    assert by_name["hour"] == Id(name="hour", rows=24)
    assert by_name["color"] == Id(name="color", vocabulary=("a", "b"))
    known = [value for value in gap if value is not None]
    assert by_name["price"].mean == pytest.approx(sum(known) / len(known), rel=1e-5)
    assert by_name["price"].missing == by_name["price"].mean
    assert isinstance(by_name["age"], Dense) and by_name["age"].missing is None
    assert (run.data.schema.group, run.data.schema.time, run.data.schema.label.name) == ("user_id", "time", "label")
    assert [m.name for m in run.metrics] == ["auc", "log_loss", "ndcg@10"]
    assert bool(made.done) == (kind != "parquet"), "Parquet in order is read as it is"


def test_lists_and_what_no_feature_takes(begin: Any) -> None:
    run, made = begin(
        table(
            genres=[["x", "y"][: i % 3] for i in range(ROWS)],
            history=[[i % 30, 3][: i % 3] for i in range(ROWS)],
            title=[f"title {i}" for i in range(ROWS)],
            constant=[1.5] * ROWS,
            empty=pa.nulls(ROWS, pa.float64()),
            holes_id=[None if i == 7 else i for i in range(ROWS)],
            hash_id=[2**40 + i for i in range(ROWS)],
            nested=[{"a": 1}] * ROWS,
            clicked=[i % 2 for i in range(ROWS)],
            infinite=[float("inf")] * ROWS,
            **{
                "dotted.name": [1.0 * i for i in range(ROWS)],
                'line\nbreak """': [1.0] * ROWS,
                "with space": [i % 7 for i in range(ROWS)],
            },
        ),
        "parquet",
    )
    by_name = {f.name: f for f in run.data.schema.features}
    assert by_name["genres"] == IdList(name="genres", vocabulary=("x", "y"))
    assert by_name["history"] == IdSequence(name="history", rows=30, max_length=50)
    assert by_name.keys() == {"user_id", "itemId", "genres", "history", "with space"}
    left = made.to_json()["left_out"]
    assert left.keys() == {
        "title", "constant", "empty", "holes_id", "hash_id", "nested", "clicked", "infinite", "dotted.name",
        'line\nbreak """',
    }  # fmt: skip
    text = Path(made.recipe).read_text()
    assert all(f"# Left out: {json.dumps(name)}: " in text for name in left)


def test_more_words_than_a_recipe_holds_are_left_out(begin: Any) -> None:
    many = pa.concat_tables([table()] * 30)
    many = many.set_column(3, "time", pa.array(range(many.num_rows)))
    _, made = begin(many.append_column("tag", pa.array([f"t{i % 5001}" for i in range(many.num_rows)])))
    assert made.to_json()["left_out"]["tag"].startswith("5001 different words, more than a recipe holds")


def test_a_rule_makes_the_label_and_its_column_is_no_feature(begin: Any) -> None:
    run, made = begin(table(label=None, rating=[i % 5 + 1 for i in range(ROWS)]), label="rating>=4")
    assert made.to_json()["left_out"] == {"rating": "the label is made of it (rating >= 4)"}
    rows = pq.read_table(made.data)
    assert rows["label"].to_pylist() == [int(value >= 4) for value in rows["rating"].to_pylist()]
    assert "rating" not in [f.name for f in run.data.schema.features]


def test_rows_are_sorted_by_their_time_and_the_file_stays(begin: Any, tmp_path: Path) -> None:
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(days=-i) for i in range(ROWS)]
    rows = table(time=None, day=days, flag=[i % 3 == 0 for i in range(ROWS)])
    run, made = begin(rows, "parquet")
    assert pq.read_table(tmp_path / "rows.parquet").equals(rows)
    assert made.data == str(tmp_path / "rows-prepared.parquet")
    assert pq.read_table(made.data)["user_id"].to_pylist() == rows["user_id"].to_pylist()[::-1]
    assert (run.data.schema.time, {f.name for f in run.data.schema.features}) == ("day", {"user_id", "itemId", "flag"})


def test_without_a_time_chance_parts_the_rows(begin: Any) -> None:
    run, made = begin(table(time=None))
    assert (run.data.schema.time, run.data.split) == ("", rtrain.Random(valid=0.1, test=0.1))
    assert "No column tells the time: chance has 80 % of the rows train" in Path(made.recipe).read_text()
    data = run.data.open()
    assert sum(data.rows(split) for split in ("train", "valid", "test")) == ROWS


REFUSED: list[tuple[pa.Table, dict[str, str], str]] = [
    (table(label=None), {}, "no column is named like a label. Say which is 0 or 1 with --label COLUMN"),
    (table(label=None, rating=[1, 2, 3, 4] * 100), {}, "'rating' holds 1 to 4.*for example --label 'rating>=3'"),
    (table(), {"label": "labl"}, "--label: .* has no column 'labl'; did you mean 'label'?"),
    (table(), {"label": "itemId>=3"}, "--label: 'itemId' is string, and 'itemId>=3' compares numbers"),
    (table(label=[0] * ROWS), {}, "the label 'label' is 0 in every row"),
    (table(label=[None, 1] * 200), {}, "200 rows are without the label 'label'"),
    (table(label=["yes", "no"] * 200), {}, "the label 'label' holds words"),
    (table(time=[None, 1] * 200), {}, "the time column 'time' is missing in some rows"),
    (table(user_id=None, itemId=None, price=[float(i) for i in range(ROWS)]), {}, "no column is a user, an item or a"),
    (table(time=[5] * ROWS), {}, "split by 'time' leaves no row for"),
    (table().slice(0, 0), {}, "there are no rows in it"),
]


@pytest.mark.parametrize(("rows", "options", "message"), REFUSED)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_refusal_says_what_to_do_and_writes_nothing(
    tmp_path: Path, rows: pa.Table, options: dict[str, str], message: str, kind: str
) -> None:
    source = written(tmp_path / f"rows.{kind}", rows)
    with pytest.raises(UserError, match=message) as refused:
        start(source, out=str(tmp_path / "recipe.py"), **options)
    assert "\n" not in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] == [f"rows.{kind}"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.csv", table())
    recipe, data = tmp_path / "recipe.py", tmp_path / "rows.parquet"
    for mine in (recipe, data):
        mine.write_text("mine")
        with pytest.raises(UserError, match=f"{mine} is there already and stays as it is"):
            start(source, out=str(recipe))
        assert mine.read_text() == "mine"
        assert len(list(tmp_path.iterdir())) == 2
        mine.unlink()


@pytest.mark.parametrize("text", ["", "a,b\n1\n", "a,b\n1,2,3\n", "\x00\xff\xfe"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="rows.csv: "):
        start(str(tmp_path / "rows.csv"), out=str(tmp_path / "recipe.py"))
