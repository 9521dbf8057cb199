"""`rtrain data prepare` on a real Ray: sorted whole, aggregates as by brute force, the same bytes after a SIGKILL."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import rtrain
from rtrain import Interactions
from rtrain.data.prepare import Prepare, parse
from rtrain.errors import DataError
from rtrain.launch.preparing import prepare
from tests.cluster.conftest import environment, wait_for

pytestmark = pytest.mark.usefixtures("joined_ray")
DAY = 86_400
SPELLED = (
    "count(user, 2d)", "count(user)", "mean(user, score, 1d)", "mean(item, score, prior=0.5, prior_rows=3)",
    "trend(user, 1d, 4d)", "recency(user)", "session(user, 2h)",
)  # fmt: skip


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """In no order, with many rows of one moment, and nulls in key, number and word."""
    draw = random.Random(seed)
    return [
        {
            "row": n,
            "user": draw.choice([None, *range(6)]),
            "item": draw.choice(["a", "b", "c", "d,e", None]),
            "at": 1_700_000_000 + 3600 * draw.randrange(24 * 9),
            "score": draw.choice([None, round(draw.uniform(-2, 2), 3)]),
            "label": draw.randrange(2),
        }
        for n in range(count)
    ]


def stored(folder: Path, given: list[dict[str, Any]], kind: str, files: int = 3) -> str:
    folder.mkdir()
    table = pa.Table.from_pylist(given)
    for number in range(files):
        part = table.slice(number * -(-len(given) // files), -(-len(given) // files))
        name = folder / f"{number}.{kind}"
        if kind == "csv":
            pa.csv.write_csv(part, name)
        elif kind == "jsonl":
            name.write_text("".join(json.dumps(row) + "\n" for row in part.to_pylist()))
        else:
            pq.write_table(part, name)
    return str(folder)


def config(source: str, out: Path, **more: Any) -> Prepare:
    return Prepare(**{
        "source": source, "out": str(out), "time": "at", "vocabularies": ("item", "user"),
        "aggregates": tuple(map(parse, SPELLED)), **more,
    })  # fmt: skip


def by_hand(given: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """Each aggregate of a row by looking at every other row."""

    def older(key: str, within: float = math.inf) -> list[dict[str, Any]]:
        return [
            x for x in given
            if row[key] is not None and x[key] == row[key] and row["at"] - within <= x["at"] < row["at"]
        ]  # fmt: skip

    def scores(of: list[dict[str, Any]]) -> list[float]:
        return [x["score"] for x in of if x["score"] is not None]

    known, liked = scores(older("user", DAY)), scores(older("item"))
    of_user = older("user")
    began, last = row["at"], row["at"]
    for x in sorted(of_user, key=lambda x: -x["at"]):
        if last - x["at"] > 7200:
            break
        began = last = x["at"]
    long = len(older("user", 4 * DAY))
    return {
        "user_count_2d": len(older("user", 2 * DAY)),
        "user_count": len(of_user),
        "user_score_mean_1d": sum(known) / len(known) if known else None,
        "item_score_mean": (sum(liked) + 1.5) / (len(liked) + 3),
        "user_trend_1d_4d": 4 * len(older("user", DAY)) / long if long else None,
        "user_recency": row["at"] - max(x["at"] for x in of_user) if of_user else None,
        "user_session_rows_2h": len([x for x in of_user if x["at"] >= began]),
        "user_session_seconds_2h": row["at"] - began,
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_aggregate_is_that_of_brute_force_and_the_sort_is_stable_and_whole(kind: str, tmp_path: Path) -> None:
    given = rows(600)
    made = prepare(config(stored(tmp_path / "in", given, kind), tmp_path / "out"), progress=False)
    got = pq.read_table(tmp_path / "out" / "data").to_pylist()
    expected = sorted(given, key=lambda row: row["at"])
    assert [row["row"] for row in got] == [row["row"] for row in expected]
    assert made.rows == 600
    items = pq.read_table(tmp_path / "out" / "vocabularies" / "item.parquet")["value"].to_pylist()
    for row, of in zip(got, expected, strict=True):
        assert row["item"] == (0 if of["item"] is None else 1 + items.index(of["item"]))
        hand = by_hand(given, of)
        for name, value in hand.items():
            if value is None:
                assert row[name] is None, name
            else:  # sums of floats in another order
                assert row[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    counts = [sum(x["item"] == item for x in given) for item in items]
    assert counts == sorted(counts, reverse=True)


def test_several_slices_and_buckets_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtrain.data.prepare import joining

    source = stored(tmp_path / "in", rows(4000), "csv")
    prepare(config(source, tmp_path / "one"), progress=False)
    monkeypatch.setattr(joining, "SLICE_ROWS", 1024)
    monkeypatch.setattr(joining, "SAMPLED", 512)
    monkeypatch.setattr(joining, "BUCKET_ROWS", 700)
    assert prepare(config(source, tmp_path / "many"), progress=False).files > 1
    one, many = (pq.read_table(tmp_path / name / "data") for name in ("one", "many"))
    assert many.column_names == one.column_names and many.num_rows == one.num_rows == 4000
    for name in one.column_names:
        if "mean" in name:  # DuckDB adds a window's numbers in an order that depends on where its rows lie
            for a, b in zip(many[name].to_pylist(), one[name].to_pylist(), strict=True):
                assert a is b if b is None else a == pytest.approx(b, rel=1e-12, abs=1e-12)
        else:
            assert many[name].equals(one[name]), name


def test_a_run_reads_it(tmp_path: Path) -> None:
    """The proposed schema as it is printed: nobody numbers anything, and no label is among the features."""
    asked = config(stored(tmp_path / "in", rows(600), "csv"), tmp_path / "out", label="label")
    made = prepare(asked, progress=False)
    names: dict[str, Any] = {name: getattr(rtrain, name) for name in ("Dense", "Id", "Label", "Schema", "Vocabulary")}
    exec(made.schema, names)
    schema = names["schema"]
    assert schema.label.name == "label" and "label" not in [f.name for f in schema.features]
    numbered = {f.name: f.vocabulary_file for f in schema.ids}
    assert set(numbered) == set(asked.vocabularies)
    for name, known in numbered.items():
        assert known == rtrain.vocabulary_of(f"{tmp_path}/out/vocabularies/{name}.parquet")
    data = Interactions(source=f"{tmp_path}/out/data", schema=schema).open()
    assert data.rows("train") > 400
    batch, _ = next(iter(data.reader(global_batch=64, seed=0, rank=0, world_size=1)))
    assert batch.ids.values.max() > 0


@pytest.mark.slow
def test_killed_and_started_again_it_makes_the_same_bytes(tmp_path: Path, ray_temp_dir: str) -> None:
    source, out = stored(tmp_path / "in", rows(3000), "csv"), tmp_path / "out"
    whole = prepare(config(source, tmp_path / "whole"), progress=False)
    words = [sys.executable, "-m", "rtrain", "data", "prepare", source, "--out", str(out), "--time", "at", "--json"]
    words += ["--vocabulary", "item", "--vocabulary", "user"]
    words += [word for spelled in SPELLED for word in ("--aggregate", spelled)]
    process = subprocess.Popen(
        words,
        env=environment(ray_temp_dir),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: Path(f"{out}.partial/typed.json").exists(), "the stage of typed rows")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert not out.exists()
    again = subprocess.run(words, env=environment(ray_temp_dir), capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "going on with" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["fingerprint"] == whole.fingerprint
    assert not Path(f"{out}.partial").exists()


@pytest.mark.slow
def test_told_to_stop_it_says_how_to_go_on_and_a_second_command_is_kept_out_meanwhile(
    tmp_path: Path, ray_temp_dir: str
) -> None:
    source, out = stored(tmp_path / "in", rows(3000), "csv", files=12), tmp_path / "out"
    words = [sys.executable, "-m", "rtrain", "data", "prepare", source, "--out", str(out), "--time", "at"]
    process = subprocess.Popen(
        words, env=environment(ray_temp_dir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: Path(f"{out}.partial/read").exists(), "the first stage")
        with pytest.raises(DataError, match="another data prepare is at work on it"):
            prepare(Prepare(source=source, out=str(out), time="at"), progress=False)
        process.terminate()
        said = process.communicate(timeout=60)[1].strip().splitlines()
    finally:
        process.kill()
        process.wait(timeout=30)
    assert process.returncode == 143
    assert said[-1].startswith("told to stop (SIGTERM); the same command does it, or goes on; ")
    assert prepare(Prepare(source=source, out=str(out), time="at"), progress=False).rows == 3000
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("in", "out")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": "att"}, "there is no column 'att' (--time); did you mean 'at'?"),
        ({"label": "item", "vocabularies": ("user",)}, "'item' holds words, and a label is of numbers"),
        ({"label": "lable"}, "there is no column 'lable' (--label); did you mean 'label'?"),
        ({"time": "item", "vocabularies": ()}, "'item' holds words, and no times"),
        ({"time": "score"}, "'score' is missing. Fill it, or drop the row"),
        ({"aggregates": (parse("mean(user, item)"),)}, "holds words, and a mean is of numbers"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = stored(tmp_path / "in", rows(50), "csv")
    with pytest.raises(DataError) as caught:
        prepare(config(source, tmp_path / "out", **change), progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    if "no column" in message:  # told by the headers, before anything is read
        assert not (tmp_path / "out.partial").exists()


def test_without_a_label_the_schema_says_so(tmp_path: Path) -> None:
    made = prepare(config(stored(tmp_path / "in", rows(50), "csv"), tmp_path / "out"), progress=False)
    assert made.schema.count("(--label does)") == 1 and "Label(name=...)" in made.schema
    assert "Label(name='score', kind='number', optional=True)" in prepare(
        config(str(tmp_path / "in"), tmp_path / "scored", label="score"), progress=False
    ).schema  # fmt: skip


def test_a_column_of_numbers_and_words_is_refused_and_read_as_words_where_asked(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("at,price\n1,2.5\n2,n/a\n3,4\n")
    with pytest.raises(DataError, match="'n/a'.*--text price"):
        prepare(Prepare(source=str(source), out=str(tmp_path / "out"), time="at"), progress=False)
    prepare(Prepare(source=str(source), out=str(tmp_path / "out"), time="at", text=("price",)), progress=False)
    assert pq.read_table(tmp_path / "out" / "data")["price"].to_pylist() == ["2.5", "n/a", "4"]
    with pytest.raises(DataError, match="it is not empty"):
        prepare(Prepare(source=str(source), out=str(tmp_path / "out"), time="at"), progress=False)
