"""Rows of a table parted by user: each in one split, as plain Python says it, however the files are written."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.by_user import user_column
from rtrain.data.holdout import LeaveOneOut, Random, RandomPerUser
from rtrain.data.interactions import Interactions
from rtrain.data.parquet import ParquetRows
from rtrain.errors import ConfigError, DataError
from rtrain.keyed import drawn
from rtrain.schema import Id, Schema

Write = Callable[..., str]
CODES = {"train": 0, "valid": 1, "test": 2}
KINDS: dict[str, Callable[[list[int]], pa.Array]] = {
    "int": lambda users: pa.array(users, pa.int32()),
    "words": lambda users: pa.array([f"u{user}" for user in users]),
    "coded words": lambda users: pa.array([f"u{user}" for user in users]).dictionary_encode(),
}


def table(seed: int, kind: str = "int") -> pa.Table:
    """Up to 300 rows of up to 60 users, unsorted, several of one moment, each row with its number."""
    draw = np.random.default_rng(seed)
    rows = int(draw.integers(40, 300))
    users = np.sort(draw.integers(0, 60, rows) // draw.integers(1, 6, rows))
    draw.shuffle(users)
    time: Any = [float, np.int64, "datetime64[us]"][seed % 3]
    return pa.table(
        {
            "user": KINDS[kind](users.tolist()),
            "time": pa.array(draw.integers(0, 50, rows).astype(time)),
            "number": pa.array(np.arange(rows)),
        }
    )


def written(folder: Path, rows: pa.Table, *, group: int, files: int) -> ParquetRows:
    folder.mkdir()
    cuts = [part * rows.num_rows // files for part in range(files + 1)]
    for part in range(files):
        piece = rows.slice(cuts[part], cuts[part + 1] - cuts[part])
        pq.write_table(piece, folder / f"part-{part}.parquet", row_group_size=group)
    return ParquetRows(str(folder))


def reference(split: LeaveOneOut | RandomPerUser, rows: pa.Table) -> list[int]:
    """The code of each row, one user after the other."""
    of_user = defaultdict[Any, list[int]](list)
    for number, user in enumerate(rows["user"].to_pylist()):
        of_user[user].append(number)
    times, codes = rows["time"].to_pylist(), [0] * rows.num_rows
    for numbers in of_user.values():
        if len(numbers) < 3:
            continue
        if isinstance(split, LeaveOneOut):
            *_, before, last = sorted(numbers, key=lambda number: (times[number], number))
            codes[before], codes[last] = 1, 2
        else:
            shuffled = sorted(numbers, key=lambda number: int(drawn(split.seed, number)))
            tests, valids = (max(1, int(len(numbers) * share)) for share in (split.test, split.valid))
            for place, number in enumerate(reversed(shuffled)):
                codes[number] = 2 if place < tests else 1 if place < tests + valids else 0
    return codes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [LeaveOneOut(), RandomPerUser(valid=0.25, test=0.15, seed=3)], ids=["last", "chance"])
def test_rows_are_parted_as_a_plain_reference_says_in_any_layout(tmp_path: Path, split: Any, kind: str) -> None:
    for seed in range(12):
        rows = table(seed, kind)
        expected = reference(split, rows)
        parts = []
        for layout, (group, files) in enumerate([(7, 3), (1000, 1), (64, 2), (7, 3)]):
            stored = written(tmp_path / f"{seed}-{layout}", rows, group=group, files=files)
            parted, ranges = split.part(stored, "time", "user")
            found = parted.read(0, rows.num_rows)
            numbers = found["number"].to_pylist()
            assert sorted(numbers) == list(range(rows.num_rows)), "every row once"
            for name, (start, stop) in ranges.items():
                mine = numbers[start:stop]
                assert mine == [n for n, code in enumerate(expected) if code == CODES[name]], "as they are stored"
            assert found.equals(rows.take(pa.array(numbers)))
            parts.append((numbers, ranges, parted.fingerprint()))
        assert all(part[:2] == parts[0][:2] for part in parts)
        assert parts[0][2] == parts[3][2], "deterministic"


def test_another_split_is_another_fingerprint_and_another_seed_other_rows(tmp_path: Path) -> None:
    stored = written(tmp_path / "rows", table(1), group=20, files=1)
    splits = [LeaveOneOut(), RandomPerUser(), RandomPerUser(seed=1), RandomPerUser(test=0.4)]
    assert len({split.part(stored, "time", "user")[0].fingerprint() for split in splits}) == len(splits)  # type: ignore[attr-defined]
    first, other = (RandomPerUser(seed=seed).part(stored, "", "user")[0].read(0, stored.rows) for seed in (0, 1))
    assert not first.equals(other)


@pytest.mark.parametrize("split", [LeaveOneOut(), RandomPerUser()], ids=["last", "chance"])
def test_it_is_read_at_any_number_of_ranks_and_every_row_once_an_epoch(
    write: Write, schema: Schema, split: Any
) -> None:
    data = Interactions(source=write(900, group=100), schema=schema, split=split, window_rows=250).open()
    data.refuse_rows()

    def seen(ranks: int) -> list[list[int]]:
        shares: list[Any] = []
        for rank in range(ranks):
            reader = iter(data.reader(global_batch=64, seed=3, rank=rank, world_size=ranks))
            shares.append([next(reader)[0].row.tolist() for _ in range(data.rows("train") // 64 + 1)])
        return [sorted(chain(*(x for x in step if x))) for step in zip(*shares, strict=True)]

    alone = seen(1)
    assert alone == seen(2) == seen(3)
    assert sorted(chain(*alone))[: data.rows("train")] == list(data.numbers("train"))
    users = {split: data.raw(split, 0, data.rows(split), ["user"])["user"].to_pylist() for split in data.ranges}
    assert set(users["valid"]) == set(users["test"]) <= set(users["train"])
    if isinstance(split, LeaveOneOut):
        assert len(set(users["test"])) == len(users["test"]) and len(users["valid"]) == len(users["test"])


def interactions(source: str, split: Any, schema: Schema) -> Interactions:
    return Interactions(source=source, schema=schema, split=split)


def test_the_users_column_is_the_group_or_the_one_id_of_the_user(schema: Schema, write: Write) -> None:
    assert user_column(schema) == "user"
    timeless = replace(schema, group="")
    assert user_column(timeless) == "", "user and gender are both of the user"
    one = replace(timeless, features=tuple(f for f in schema.features if f.name != "gender"))
    assert user_column(one) == "user"
    opened = [interactions(write(300), LeaveOneOut(), of).open().ranges for of in (one, schema)]
    assert opened[0] == opened[1]


def test_what_cannot_be_parted_is_one_line(write: Write, schema: Schema, tmp_path: Path) -> None:
    source = write(300, group=50)
    nobody, timeless = replace(schema, group=""), replace(schema, time="")
    cases: list[tuple[Any, Schema, type[Exception], str]] = [
        (LeaveOneOut(), nobody, ConfigError, "schema.group: it is empty.*data.split=LeaveOneOut needs the column"),
        (RandomPerUser(), nobody, ConfigError, "schema.group: it is empty.*data.split=RandomPerUser needs the column"),
        (LeaveOneOut(), timeless, ConfigError, "schema.time: it is empty, but data.split=LeaveOneOut needs.*order"),
    ]
    for split, of, kind, message in cases:
        refused(interactions(source, split, of), kind, message)
    interactions(source, RandomPerUser(), timeless).open()
    rare = (
        table(0)
        .slice(0, 6)
        .set_column(0, "user", pa.array([1, 1, 2, 2, 3, 3]))
        .append_column("label", pa.array([1.0] * 6))
    )
    plain = Schema(features=(Id(name="user", rows=9, entity="user"),), time="time")
    pq.write_table(rare, tmp_path / "rare.parquet")
    for split in (LeaveOneOut(), RandomPerUser()):
        message = r"rare.parquet: none of its 3 users \(column 'user'\) has three rows, so .*Bring more data, or give"
        refused(interactions(str(tmp_path / "rare.parquet"), split, plain), DataError, message)
    user = pa.array([None if n == 137 else n % 9 for n in range(300)])
    missing = write(300, group=50, user=user)
    for split in (LeaveOneOut(), RandomPerUser()):
        refused(interactions(missing, split, schema), DataError, "rows.parquet: 'user' is missing at row 137, so that")
    interactions(missing, Random(), schema).open()
    time = pa.array([None if n == 137 else n for n in range(300)])
    refused(
        interactions(write(300, group=50, time=time), LeaveOneOut(), schema), DataError, "'time' is missing at row 137"
    )


def refused(data: Interactions, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        data.open()
    assert "\n" not in str(error.value)
