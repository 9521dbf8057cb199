from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.data import movielens, sources
from rtrain.data.cached import VERSION_KEY
from rtrain.errors import DataError

USER = (
    "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "1\t24\tM\ttechnician\t85711\n"
    "2\t\tF\tnone\tx\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    '2\tA "Quoted" Tale\tV\tFilm-Noir Sci-Fi\n'
    "267\tunkonwn\tunkonwn\tunknown\n"
)
INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1\t2\t4\t7200\n"
    "1\t1\t3\t3600\n"
    "2\t1\t5\t7200\n"
    "1\t267\t5\t3600\n"
    "9\t8\t1\t90000\n"
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for kind, text in (("user", USER), ("item", ITEM), ("inter", INTER)):
        (tmp_path / f"ml-100k.{kind}").write_text(text)
    return tmp_path


def convert(raw: Path) -> list[dict[str, Any]]:
    movielens.convert(raw, raw / "out.parquet")
    rows: list[dict[str, Any]] = pq.read_table(raw / "out.parquet").to_pylist()
    return rows


def test_rows_say_what_was_known_at_their_moment(raw: Path) -> None:
    rows = convert(raw)
    assert [(r["timestamp"], r["user_id"], r["item_id"]) for r in rows] == [
        (3600, 1, 1),
        (3600, 1, 267),
        (7200, 1, 2),
        (7200, 2, 1),
        (90000, 9, 8),
    ]
    # Items of the same second are not in each other's history.
    assert [r["history"] for r in rows] == [[], [], [1, 267], [], []]
    assert [r["label"] for r in rows] == [0, 1, 1, 1, 0]
    assert [r["hour"] for r in rows] == [1, 1, 2, 2, 1]
    assert [r["age"] for r in rows] == [24, 24, 24, None, None]
    assert [r["gender"] for r in rows] == ["M", "M", "M", "F", None]
    assert [r["occupation"] for r in rows] == ["technician"] * 3 + ["none", None]
    assert [r["release_year"] for r in rows] == [1995, None, None, 1995, None]
    assert [r["title"] for r in rows] == ["Toy Story", "unkonwn", 'A "Quoted" Tale', "Toy Story", None]
    toy = ["Animation", "Children's", "Comedy"]
    assert [r["genres"] for r in rows] == [toy, ["unknown"], ["Film-Noir", "Sci-Fi"], toy, None]


def test_the_columns_have_the_types_that_the_schema_needs(raw: Path) -> None:
    convert(raw)
    kinds = {f.name: str(f.type) for f in pq.read_schema(raw / "out.parquet")}
    assert kinds == {
        "user_id": "int64",
        "item_id": "int64",
        "rating": "double",
        "age": "double",
        "gender": "string",
        "occupation": "string",
        "genres": "list<element: string>",
        "title": "string",
        "release_year": "double",
        "hour": "int64",
        "history": "list<element: int64>",
        "user_liked": "double",
        "user_seen": "double",
        "item_liked": "double",
        "item_seen": "double",
        "timestamp": "int64",
        "label": "double",
        **dict.fromkeys(movielens.RESIDUAL_COLUMNS, "double"),
    }


@given(
    events=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3), st.integers(1, 9)), max_size=60),
    longest=st.integers(1, 6),
)
def test_histories_agree_with_a_brute_force(events: list[tuple[int, int, int]], longest: int) -> None:
    events.sort()
    time, user, item = (np.array([e[i] for e in events], np.int64) for i in range(3))
    got = movielens.histories(user, item, time, longest)
    expected = [[i for t, u, i in events if u == user and t < now][-longest:] for now, user, _ in events]
    assert [got.values[a:b].tolist() for a, b in zip(got.offsets[:-1], got.offsets[1:], strict=True)] == expected


@given(events=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3), st.booleans()), max_size=60))
def test_liked_before_agrees_with_a_brute_force(events: list[tuple[int, int, bool]]) -> None:
    events.sort()
    time, key, label = (np.array([e[i] for e in events], np.int64) for i in range(3))
    share, seen = movielens.liked_before(key, label.astype(np.float64), time)
    for row, (now, mine, _) in enumerate(events):
        older = [liked for t, k, liked in events if k == mine and t < now]
        assert share[row] == pytest.approx((sum(older) + 2.5) / (len(older) + 5), abs=1e-12)
        assert seen[row] == pytest.approx(np.log1p(len(older)), abs=1e-12)


def test_the_real_data_is_whole_and_leaks_no_future(ml100k: Path) -> None:
    rows = pq.read_table(ml100k).to_pylist()
    assert len(rows) == 100_000
    keys = [(r["timestamp"], r["user_id"], r["item_id"]) for r in rows]
    assert keys == sorted(keys)
    # Brute force: walk the rows second by second; a row sees what its user had before this second.
    seen: dict[int, list[int]] = defaultdict(list)
    liked: dict[int, float] = defaultdict(float)
    pending: list[dict[str, Any]] = []
    for row in rows:
        if pending and pending[-1]["timestamp"] != row["timestamp"]:
            for old in pending:
                seen[old["user_id"]].append(old["item_id"])
                liked[old["user_id"]] += old["label"]
            pending = []
        user = row["user_id"]
        assert row["history"] == seen[user][-20:]
        assert row["user_liked"] == pytest.approx((liked[user] + 2.5) / (len(seen[user]) + 5), abs=1e-12)
        pending.append(row)
    for row in rows[::997]:
        assert row["hour"] == datetime.fromtimestamp(row["timestamp"], UTC).hour
        assert row["label"] == float(row["rating"] >= 4)
    assert {g for r in rows for g in r["genres"]} == set(movielens.GENRES)
    assert {r["gender"] for r in rows} == set(movielens.GENDERS)
    assert {r["occupation"] for r in rows} == set(movielens.OCCUPATIONS)
    assert {r["user_id"] for r in rows} == set(range(1, 944))
    assert {r["item_id"] for r in rows} == set(range(1, 1683))
    assert min(r["release_year"] for r in rows if r["release_year"] is not None) == 1922
    assert sum(r["label"] for r in rows) == 55_375
    assert {r["item_id"] for r in rows if r["release_year"] is None} == {267, 1412}


@pytest.mark.parametrize(
    ("kind", "before", "after", "message"),
    [
        (
            "inter",
            "1\t1\t3\t3600\n",
            "1\t1\t3\n",
            r"ml-100k\.inter: not a whole RecBole file \(.*Expected 4 columns, got 3",
        ),
        ("inter", "1\t1\t3\t3600\n", "1\tx\t3\t3600\n", r"ml-100k\.inter: not a whole RecBole file \(.*'x'"),
        ("inter", "1\t1\t3\t3600\n", "1\t1\t\t3600\n", r"ml-100k\.inter: rating is empty at line 3"),
        (
            "inter",
            "timestamp:float",
            "when:float",
            r"ml-100k\.inter: column 'timestamp' is missing from its first line",
        ),
        ("item", "Film-Noir Sci-Fi", "Noir", r"ml-100k\.item: line 3 has the genre 'Noir'"),
        ("user", USER.partition("\n")[2], "", r"ml-100k\.user: it has no rows"),
        ("user", USER, "", r"ml-100k\.user: column 'user_id' is missing from its first line"),
    ],
)
def test_a_raw_file_that_is_damaged_is_named(raw: Path, kind: str, before: str, after: str, message: str) -> None:
    path = raw / f"ml-100k.{kind}"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(DataError, match=message):
        movielens.convert(raw, raw / "out" / "a.parquet")
    assert not list(raw.glob("out/*")) and not list(raw.glob("out/.*"))


def test_a_raw_file_that_is_missing_is_named(raw: Path) -> None:
    (raw / "ml-100k.item").unlink()
    with pytest.raises(
        DataError, match=r"ml-100k\.item: no such file\. The raw files are ml-100k\.inter, ml-100k\.user"
    ):
        movielens.convert(raw, raw / "out.parquet")


def test_a_raw_file_that_is_no_text_is_refused(raw: Path) -> None:
    (raw / "ml-100k.item").write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(DataError, match=r"ml-100k\.item: not a whole RecBole file"):
        movielens.convert(raw, raw / "out.parquet")


def test_only_a_whole_file_of_this_version_is_current(raw: Path) -> None:
    convert(raw)
    out = raw / "out.parquet"
    assert movielens.is_current(out) and not movielens.is_current(raw / "none.parquet")
    content = bytearray(out.read_bytes())
    out.write_bytes(content[:-20])
    assert not movielens.is_current(out)
    content[40] ^= 1  # within the first page
    out.write_bytes(content)
    assert not movielens.is_current(out)
    convert(raw)
    pq.write_table(pq.read_table(out).replace_schema_metadata({VERSION_KEY: "0"}), out)
    assert not movielens.is_current(out)


def test_the_pinned_wheel_is_the_one_that_is_named() -> None:
    assert sources.REQUIREMENT.replace("==", "-") in sources.WHEEL
