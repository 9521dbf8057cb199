"""Interactions read from text and tables: words, times and ids as they come, and what is refused."""

import gzip
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.feedback import from_parquet
from rtrain.data.retrieval import Histories, Pairs
from rtrain.data.side import SideFeatures
from rtrain.data.split import ByTime
from rtrain.errors import ConfigError, DataError
from rtrain.schema import Id


def test_text_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("2 5 3 9 5\n\n0 1 2 3\n2 4\n")
    data = Histories(source=str(tmp_path / "log.txt"), users=3, items=10, time="", length=5).open()
    assert data.feedback.item.tolist() == [1, 2, 3, 5, 3, 9, 5, 4]
    assert not data.feedback.timed


def timed(path: Path, times: pa.Array) -> Histories:
    table = pa.table({"user_id": [0] * 5, "item_id": range(5), "timestamp": times})
    pq.write_table(table, path / "log.parquet")
    return Histories(source=f"{path}/log.parquet", users=1, items=5)


def test_times_may_have_parts_of_seconds_which_order_them(tmp_path: Path) -> None:
    found = timed(tmp_path, pa.array([9.75, 9.5, 3.0, -0.5, 2e9])).open().feedback
    assert found.item.tolist() == [3, 2, 1, 0, 4] and found.time.tolist() == [-1, 3, 9, 9, 2 * 10**9]
    for bad in (float("nan"), float("inf"), 1e300):
        with pytest.raises(DataError, match=r"'timestamp' \(data.time\) has numbers that are no time"):
            timed(tmp_path, pa.array([1.0, 2.0, bad, 4.0, 5.0])).open()
    with pytest.raises(DataError, match=r"\(data.time\) is string; seconds \(numbers\) or timestamps are needed"):
        timed(tmp_path, pa.array(list("abcde"))).open()


def test_a_split_whose_users_are_all_new_says_so(tmp_path: Path) -> None:
    users = np.repeat(np.arange(10), 4)
    table = pa.table({"user_id": users, "item_id": np.arange(40) % 13, "timestamp": np.arange(40)})
    pq.write_table(table, tmp_path / "log.parquet")
    data = Histories(source=f"{tmp_path}/log.parquet", users=10, items=13, split=ByTime(valid=0.2, test=0.2))
    with pytest.raises(DataError, match="valid would be without a user: nobody in it has interactions in training"):
        data.open()


BAD_TEXT = {
    "0 1 2\n1 x 3\n": "line 2 has a word that is no whole number: 'x'",
    "0 1 2\n7\n": "line 2 has a user and no item. Add the items, or drop the line",
    "\n": "it has no interactions",
    "0 1 2 3\n4 1 2 3\n": "user 4 is not one of data.users=4",
    "0 1 2 -3\n": "item -3 is not one of data.items=10",
    "0 1 2\n1 3 4\n": "valid would be without a user",
}


@pytest.mark.parametrize(("text", "message"), BAD_TEXT.items())
def test_bad_text_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        Histories(source=str(path), users=4, items=10, time="").open()
    assert "\n" not in str(error.value)


def test_a_text_may_lie_anywhere_and_be_compressed(tmp_path: Path) -> None:
    text = "0 1 2 3 4\n1 5 6 7 8\n"
    (tmp_path / "log.txt").write_text(text)
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(text.encode()))
    fsspec.filesystem("memory").pipe("/texts/log.txt.gz", gzip.compress(text.encode()))
    found = [
        Histories(source=source, users=2, items=10, time="").open().feedback.item.tolist()
        for source in (
            f"{tmp_path}/log.txt", f"file://{tmp_path}/log.txt", f"{tmp_path}/log.txt.gz", "memory://texts/log.txt.gz"
        )
    ]  # fmt: skip
    assert found == [[1, 2, 3, 4, 5, 6, 7, 8]] * 4
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(text.encode())[:-12])
    with pytest.raises(DataError, match="log.txt.gz: it cannot be read"):
        Histories(source=f"{tmp_path}/log.txt.gz", users=2, items=10, time="").open()


def test_raw_ids_are_numbered_in_their_order(tmp_path: Path) -> None:
    names, first = ["zoe", "ann", "ben"], [9_000_000_000, -5, 70, 3, 12, 44]
    rows = [(user, item) for user in names for item in first]
    table = pa.table({
        "user_id": pa.array([user for user, _ in rows]).dictionary_encode(),
        "item_id": [item for _, item in rows],
        "timestamp": range(len(rows)),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet")
    text = "".join(f"{user} {' '.join(map(str, first))}\n" for user in names)
    (tmp_path / "log.txt").write_text(text)
    data = Histories(source=f"{tmp_path}/log.parquet", users=3, items=6, raw_ids=True)
    found = data.open().feedback
    assert found.user.tolist() == [0] * 6 + [1] * 6 + [2] * 6 and found.item[:6].tolist() == [5, 0, 4, 1, 2, 3]
    of_words = replace(data, source=f"{tmp_path}/log.txt").open().feedback
    assert of_words.user.tolist() == found.user.tolist()
    assert of_words.item[:6].tolist() == [sorted(map(str, first)).index(str(item)) for item in first]
    for source in ("log.parquet", "log.txt"):
        with pytest.raises(DataError, match="it has 6 items, more than data.items=5. Set data.items to 6 or more"):
            replace(data, source=f"{tmp_path}/{source}", items=5).open()
    with pytest.raises(DataError, match="whole numbers are needed. Set data.raw_ids"):
        replace(data, raw_ids=False).open()
    with pytest.raises(DataError, match="no whole number: 'zoe'. Set data.raw_ids"):
        replace(data, source=f"{tmp_path}/log.txt", raw_ids=False).open()
    side = SideFeatures(source=f"{tmp_path}/log.parquet", key="item_id", features=(Id(name="kind", rows=3),))
    with pytest.raises(ConfigError, match="data.raw_ids: the tables of users and items"):
        Pairs(source=f"{tmp_path}/log.parquet", users=3, items=6, raw_ids=True, item_features=side)


def test_a_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("0 1 2 3 4\n")
    data = Histories(source=f"{tmp_path}/log.txt", users=2, items=10)
    assert data.open().feedback.item.tolist() == [1, 2, 3, 4]
    for change in ({"user": "who"}, {"item": "what"}, {"time": "when"}, {"rating": "stars", "at_least": 4.0}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(change))}: .* is a text of lines .* no columns. Leave"):
            replace(data, **change).open()  # type: ignore[arg-type]


def test_a_split_of_what_users_had_before_says_so(tmp_path: Path) -> None:
    """An item that is had again is hidden where it would test."""
    (tmp_path / "log.txt").write_text("0 1 2 3 4 1 2 3 4\n1 5 6 5 6\n")
    data = Histories(source=f"{tmp_path}/log.txt", users=2, items=10, time="")
    with pytest.raises(
        DataError, match="valid would be without a user: all that it would ask for, the users had before"
    ):
        data.open()
    assert replace(data, hide_seen=False).open().rows("test") == 2


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.date32()])
def test_times_are_seconds_whatever_the_column_counts_in(tmp_path: Path, kind: pa.DataType) -> None:
    seconds = np.array([86400 * 3, 86400, 86400 * 20, 86400 * 4])
    times = pa.array(seconds).cast(pa.timestamp("s")).cast(kind)
    table = pa.table({"user_id": [0, 0, 0, 0], "item_id": [1, 2, 3, 4], "timestamp": times})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    feedback = from_parquet(source, user="user_id", item="item_id", time="timestamp", rating="", at_least=None)
    assert feedback.time.tolist() == sorted(seconds.tolist()) and feedback.item.tolist() == [2, 1, 4, 3]
