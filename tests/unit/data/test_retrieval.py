import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rtrain.data.cursor import Cursor
from rtrain.data.feedback import Feedback
from rtrain.data.holdout import TEST, TRAIN, VALID, LeaveOneOut, Random, RandomPerUser
from rtrain.data.negatives import Negatives, Sampler
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.data.retrieval_set import RetrievalDataset
from rtrain.data.split import ByTime
from rtrain.errors import ConfigError, DataError

USERS, ITEMS = 40, 60
BEGIN = Cursor()


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Parquet in no order: users of 1 to 20 items, each item once a user, some of one moment."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        items = draw.permutation(ITEMS)[: 1 + user // 2]
        rows += [(user, int(item), int(draw.integers(0, 500)) // 2, 1 + place % 5) for place, item in enumerate(items)]
    draw.shuffle(rows)
    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp", "rating"), map(list, columns), strict=True)))
    pq.write_table(table, tmp_path / "log.parquet")
    return str(tmp_path / "log.parquet")


def kinds(log: str) -> dict[str, Pairs | Histories]:
    both: dict[str, Any] = {"source": log, "users": USERS, "items": ITEMS, "negatives": Negatives(count=3)}
    return {"pairs": Pairs(**both), "histories": Histories(**both, length=6)}


def every_kind(log: str) -> dict[str, Pairs | Histories]:
    """Those, and with every item among the negatives, and told what users had."""
    found = kinds(log)
    more = {"all": Negatives(by="all"), "known": Negatives(count=0), "popular": Negatives(by="popularity", known=True)}
    for name, negatives in more.items():
        found |= {f"{kind} {name}": replace(data, negatives=negatives) for kind, data in kinds(log).items()}
    return found


def lists(batch: RetrievalBatch) -> list[list[list[int]]]:
    """Of each row: whom (or the history), and the candidates of all its positions."""
    lengths = batch.ids.lengths.view(len(batch.ids.keys), batch.rows).tolist()
    values = iter(batch.ids.values.tolist())
    by_feature = [[list(itertools.islice(values, n)) for n in of] for of in lengths]
    return [list(row) for row in zip(*by_feature, strict=True)]


def epoch(data: RetrievalDataset, world: int, *, cursor: Cursor = BEGIN, steps: int = 100) -> dict[Any, Any]:
    """(epoch, sample) -> its row; and the global batches' losses' units, which every rank must know alike."""
    found: dict[Any, Any] = {}
    readers = [
        data.reader("train", global_batch=16, seed=5, rank=rank, world_size=world, cursor=cursor)
        for rank in range(world)
    ]
    now = cursor
    for shares in itertools.islice(zip(*readers, strict=True), steps):
        batches = [batch for batch, _ in shares]
        assert len({batch.units for batch in batches}) == len({cursor for _, cursor in shares}) == 1
        assert sum(int((batch.target[..., 0] >= 0).sum()) for batch in batches) == batches[0].loss_units(float)
        for batch in batches:
            told = [sorted(fact for fact in row if fact >= 0) for row in batch.target.flatten(1).tolist()]
            for number, row, facts in zip(batch.row.tolist(), lists(batch), told, strict=True):
                assert (now.epoch, number) not in found
                found[now.epoch, number] = [*row, facts]
        now = shares[0][1]
        if now.epoch > cursor.epoch + 1:
            break
    for reader in readers:
        reader.close()
    return found


def train_items(data: RetrievalDataset) -> dict[int, list[int]]:
    had = defaultdict(list)
    for user, item, code in zip(data.feedback.user, data.feedback.item, data.codes, strict=True):
        if code == TRAIN:
            had[int(user)].append(int(item))
    return had


KINDS = [f"{kind}{more}" for kind in ("pairs", "histories") for more in ("", " all", " known", " popular")]


@pytest.mark.parametrize("kind", KINDS)
def test_two_epochs_are_the_same_rows_and_negatives_at_any_world_size(log: str, kind: str) -> None:
    data = every_kind(log)[kind].open()
    alone = epoch(data, 1)
    assert {number for _, number in alone} == set(range(*data.ranges["train"]))
    for world in (2, 3, 4):
        assert epoch(data, world) == alone
    first, second = ({n: row for (e, n), row in alone.items() if e == at} for at in (0, 1))
    assert first.keys() == second.keys() and first != second, "negatives are drawn anew in each epoch"


@pytest.mark.parametrize("kind", ["pairs all", "histories all"])
def test_a_batch_offers_every_item_once(log: str, kind: str) -> None:
    data = every_kind(log)[kind].open()
    reader = data.reader("train", global_batch=16, seed=5, rank=0, world_size=1)
    for batch, _ in itertools.islice(reader, 12):
        offered = []
        item = batch.ids.padded("item").view(*batch.target.shape[:2], -1)
        for row, position in (batch.target[..., 0] >= 0).nonzero().tolist():
            assert item[row, position, 0] == batch.target[row, position, 0]
            offered += item[row, position, 1:][batch.target[row, position, 2:] >= 0].tolist()
        assert sorted(offered) == data.catalogue.tolist()
    reader.close()


@pytest.mark.parametrize("kind", ["pairs", "histories"])
def test_a_resume_draws_the_same_negatives(log: str, kind: str) -> None:
    data = kinds(log)[kind].open()
    reader = data.reader("train", global_batch=16, seed=5, rank=0, world_size=1)
    (_, cursor), *_ = itertools.islice(reader, 1)
    reader.close()
    whole = epoch(data, 1)
    later = epoch(data, 2, cursor=cursor)
    assert later.items() <= whole.items() and len(later) == len(whole) - cursor.sample


def test_a_pair_is_a_user_an_item_and_what_the_user_did_not_have(log: str) -> None:
    data = kinds(log)["pairs"].open()
    had, pairs = train_items(data), set()
    for (user,), (item, *negatives), _ in epoch(data, 1).values():
        assert item in had[user] and not set(negatives) & set(had[user]) and len(negatives) == 3
        assert set(negatives) <= set(data.catalogue.tolist())
        pairs.add((user, item))
    assert pairs == {(user, item) for user, items in had.items() for item in items}


def test_a_history_is_the_newest_items_each_with_the_next_one(log: str) -> None:
    data = kinds(log)["histories"].open()
    had = {tuple(items[-7:]): items for items in train_items(data).values() if len(items) >= 2}
    seen = set()
    for history, candidates, _ in epoch(data, 1).values():
        positives = candidates[::4]
        newest = (*history, positives[-1])
        assert positives == list(newest[1:]) and len(history) <= 6
        assert not {c for n, c in enumerate(candidates) if n % 4} & set(had[newest])
        seen.add(newest)
    assert seen == set(had)


@pytest.mark.parametrize("kind", ["pairs", "histories"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_who_is_asked_knows_what_came_before(log: str, kind: str, split: Any) -> None:
    data = kinds(log)[kind].open()
    code = {"valid": VALID, "test": TEST}[split]
    for world in (1, 3):
        asked, items = {}, []
        for rank in range(world):
            for batch in data.scan(split, global_batch=8, rank=rank, world_size=world):
                if batch.items is not None:
                    items += batch.items.tolist()
                    assert [candidates for _, candidates in lists(batch)] == [[item] for item in batch.items]
                    continue
                assert batch.seen is not None and batch.positives is not None
                for place, (number, row) in enumerate(zip(batch.row.tolist(), lists(batch), strict=True)):
                    seen, wanted = (
                        of.values[of.offsets[place] : of.offsets[place + 1]].tolist()
                        for of in (batch.seen, batch.positives)
                    )
                    asked[number] = (row, seen, wanted)
                    assert int(batch.last[place]) == len(row[0]) - 1
        assert sorted(items) == data.catalogue.tolist(), "every item once"
        assert sorted(asked) == list(data.numbers(split))
        users = iter(u for u in data.users if {TRAIN, code} <= set(data.codes[data.feedback.user == u]))
        for number in sorted(asked):
            user, (context, nothing), (_, seen, wanted) = next(users), asked[number][0], asked[number]
            mine = data.feedback.user == user
            known = data.feedback.item[mine & (data.codes < code)].tolist()
            assert nothing == [] and seen == known
            assert wanted == data.feedback.item[mine & (data.codes == code)].tolist()
            assert context == ([user] if kind == "pairs" else known[-6:])
        assert next(users, None) is None


def feedback(sizes: list[int]) -> Feedback:
    user = np.repeat(np.arange(len(sizes)), sizes)
    return Feedback.of(user, np.arange(len(user)), np.arange(len(user)))


def test_leave_one_out_takes_the_last_two_of_three_or_more() -> None:
    codes = LeaveOneOut().assign(feedback([1, 2, 3, 5])).tolist()
    assert codes == [0, 0, 0, 0, VALID, TEST, 0, 0, 0, VALID, TEST]


def test_shares_by_chance() -> None:
    data = feedback([1, 2, 3, 10, 37])
    codes = RandomPerUser(valid=0.1, test=0.2).assign(data)
    of_user = [np.bincount(codes[data.user == u], minlength=3).tolist() for u in range(5)]
    assert of_user == [[1, 0, 0], [2, 0, 0], [1, 1, 1], [7, 1, 2], [27, 3, 7]]
    assert (codes != RandomPerUser(valid=0.1, test=0.2, seed=1).assign(data)).any()
    assert np.bincount(Random(valid=0.1, test=0.2).assign(data)).tolist() == [38, 5, 10]


def test_by_time_keeps_a_moment_together() -> None:
    moments = Feedback.of(np.zeros(10, np.int64), np.arange(10), np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7]))
    assert ByTime(valid=0.2, test=0.2).assign(moments).tolist() == [0] * 6 + [1] + [2] * 3
    with pytest.raises(DataError, match="left without a row"):
        ByTime().assign(replace(moments, time=np.zeros(10, np.int64)))
    with pytest.raises(DataError, match="ByTime needs times"):
        ByTime().assign(replace(moments, timed=False))


def test_negatives_by_popularity_come_as_often_as_items_were_had() -> None:
    item = np.repeat([3, 5, 9], [100, 300, 600])
    sampler = Sampler(Negatives(count=2, by="popularity"), np.array([3, 5, 9]), np.arange(1000), item)
    nobody = np.full(20_000, 5000)
    drawn = sampler.draw((0, 0), np.arange(20_000), np.zeros(20_000, np.int64), nobody)
    shares = np.bincount(drawn.ravel(), minlength=10)[[3, 5, 9]] / drawn.size
    # Five standard deviations of a share of 40,000 draws are 0.0125 at most.
    assert np.abs(shares - [0.1, 0.3, 0.6]).max() < 0.0125


def test_uniform_negatives_are_uniform_over_what_the_user_did_not_have() -> None:
    catalogue = np.arange(10)
    sampler = Sampler(Negatives(count=4), catalogue, np.zeros(5, np.int64), np.arange(5))
    drawn = sampler.draw((7, 1), np.arange(10_000), np.zeros(10_000, np.int64), np.zeros(10_000, np.int64))
    shares = np.bincount(drawn.ravel(), minlength=10) / drawn.size
    assert shares[:5].max() == 0.0 and np.abs(shares[5:] - 0.2).max() < 0.0125


def test_bad_tables_and_bad_configs_are_one_line(tmp_path: Path, log: str) -> None:
    pairs = kinds(log)["pairs"]
    for change, message in (
        ({"user": "usr_id"}, "no column 'usr_id' .data.user.; did you mean 'user_id'"),
        ({"source": "/nope.parquet"}, "no such file or folder"),
        ({"items": 30}, "is not one of data.items=30"),
        ({"items": 1000, "negatives": Negatives(count=60)}, r"60 negatives, but .* has \d+ different items"),
    ):
        with pytest.raises(DataError, match=message):
            replace(pairs, **change).open()  # type: ignore[arg-type]
    twice = pa.table({"user_id": [0, 0, 0, 0], "item_id": [1, 2, 3, 2]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="train and test have 1 row in common, such as user 0 with item 2"):
        Pairs(source=str(tmp_path / "twice.parquet"), users=1, items=4, time="", hide_seen=False).open().refuse_rows()
    pq.write_table(pa.table({"user_id": [0] * 3 + [1], "item_id": [1, 2, 3, 1]}), tmp_path / "all.parquet")
    with pytest.raises(DataError, match="user 0 had all 1 items|no negative to draw"):
        Pairs(source=str(tmp_path / "all.parquet"), users=2, items=4, time="", split=Only()).open()  # type: ignore[arg-type]
    for field, message in (
        ({"negatives": Negatives(count=60)}, "60 negatives of 60 items"),
        ({"rating": "rating"}, "rating and at_least go together"),
        ({"users": 0}, "data.users: must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(pairs, **field)  # type: ignore[arg-type]


class Only:
    """Everything trains but the last row of all."""

    in_time = False

    def assign(self, feedback: Feedback) -> Any:
        return np.array([TRAIN] * (len(feedback.user) - 1) + [TEST], np.int8)


def test_only_ratings_of_at_least_so_much_are_positives(log: str) -> None:
    few = replace(kinds(log)["histories"], rating="rating", at_least=3.0).open()
    assert 0 < len(few.feedback.user) < len(kinds(log)["histories"].open().feedback.user)
    ratings = pq.read_table(log)
    kept = ratings.filter(pa.compute.greater_equal(ratings["rating"], 3))
    assert len(few.feedback.user) == kept.num_rows
    assert few.remarks(0)[0] == f"{few.feedback.without} of {USERS} users have no positive (data.at_least), so they " \
        "are in no split"  # fmt: skip
    assert few.feedback.without == len(set(ratings["user_id"].to_pylist()) - set(kept["user_id"].to_pylist())) > 0


def test_what_is_had_again_is_hidden_and_no_answer_or_is_to_be_found(tmp_path: Path) -> None:
    """Were it a candidate alone of what was had before, being one would give it away."""
    rows = [(user, item) for user, items in enumerate(([1, 2, 3, 1], [1, 2, 3, 4, 2], [1, 2, 3, 5])) for item in items]
    users, items = map(list, zip(*rows, strict=True))
    pq.write_table(pa.table({"user_id": users, "item_id": items}), tmp_path / "again.parquet")
    data = Pairs(source=str(tmp_path / "again.parquet"), users=3, items=6, time="", negatives=Negatives(count=0))

    def asked(pairs: Pairs) -> dict[int, tuple[set[int], list[int]]]:
        found = dict[int, tuple[set[int], list[int]]]()
        for batch in pairs.open().scan("test", global_batch=2, rank=0, world_size=1):
            if batch.seen is not None and batch.positives is not None:
                for n, user in enumerate(batch.ids.values.tolist()):
                    seen, wanted = (x.select(np.array([n])).values for x in (batch.seen, batch.positives))
                    found[user] = (set(seen.tolist()), wanted.tolist())
        return found

    assert asked(data) == {2: ({1, 2, 3}, [5])}
    said = "2 of 3 users are tested by what they had before alone, which is hidden (data.hide_seen), so they only train"
    assert data.open().remarks(0) == (said,)
    every = replace(data, hide_seen=False)
    assert asked(every) == {0: (set(), [1]), 1: (set(), [2]), 2: (set(), [5])} and every.open().remarks(0) == ()


def test_users_that_a_split_leaves_too_little_are_counted(log: str) -> None:
    # Users 0 and 1 have one item, 2 and 3 two: these four only train, and one item is followed by none.
    of = {kind: data.open().remarks(0) for kind, data in kinds(log).items()}
    only_train = f"4 of {USERS} users have nothing that tests, so they only train"
    assert of["pairs"] == (only_train,)
    # And 4 and 5, with three, have one that trains.
    assert of["histories"] == (
        f"4 of {USERS} users have one item that trains and no next one, so they train nothing", only_train
    )  # fmt: skip


def test_times_stand_beside_a_historys_items(log: str) -> None:
    data = kinds(log)["histories"].open()
    when = {
        (int(u), int(i)): int(t)
        for u, i, t in zip(data.feedback.user, data.feedback.item, data.feedback.time, strict=True)
    }
    reader = data.reader("train", global_batch=16, seed=5, rank=0, world_size=1)
    batches = [batch for batch, _ in itertools.islice(reader, 2)]
    reader.close()
    batches += [batch for batch in data.scan("test", global_batch=8, rank=0, world_size=1) if batch.items is None]
    for batch in (*batches, batches[0].padded(20)):
        assert batch.times is not None and batch.times.shape[0] == batch.rows
        for row, (number, (history, _)) in enumerate(zip(batch.row.tolist(), lists(batch), strict=True)):
            user = int(data.users[data._of[number]]) if number >= 0 else -1
            times = batch.times[row].tolist()
            assert times[: len(history)] == [when[user, item] for item in history]
            assert not any(times[len(history) :])


def test_a_rating_that_no_row_has_and_a_time_that_is_missing(tmp_path: Path, log: str) -> None:
    with pytest.raises(DataError, match=r"no row has a 'rating' .* of 6 .data.at_least. or more; the highest is 5"):
        replace(kinds(log)["pairs"], rating="rating", at_least=6.0).open()
    nulls = (
        pq.read_table(log).drop_columns(["timestamp"]).append_column("timestamp", pa.nulls(pq.read_table(log).num_rows))
    )
    pq.write_table(nulls, tmp_path / "nulls.parquet")
    with pytest.raises(DataError, match=r"'timestamp' is null at row 0 of nulls\.parquet\. Fill it, or drop the row"):
        replace(kinds(log)["pairs"], source=str(tmp_path / "nulls.parquet")).open()


def test_a_graph_has_the_edges_of_training_alone_and_is_the_same_in_every_batch(log: str) -> None:
    data = Graph(source=log, users=USERS, items=ITEMS, split=RandomPerUser(valid=0.2, test=0.2)).open()
    expected = np.zeros((USERS + ITEMS, USERS + ITEMS), bool)
    trained = data.codes == TRAIN
    expected[data.feedback.user[trained], USERS + data.feedback.item[trained]] = True
    assert 0 < expected.sum() < len(data.feedback.user)
    reader = data.reader("train", global_batch=16, seed=5, rank=1, world_size=2)
    batches = [next(iter(reader))[0], *data.scan("test", global_batch=32, rank=1, world_size=2)]
    reader.close()
    assert len(batches) > 3
    for batch in batches:
        assert all(batch.inputs[name] is edge for name, edge in data.graph.edges.items())  # type: ignore[union-attr]
        for key, rows in (("users", USERS), ("items", ITEMS)):
            keys = batch.ids.keys
            lengths = batch.ids.lengths.view(len(keys), -1).sum(1).tolist()
            start = sum(lengths[: keys.index(key)])
            assert batch.ids.values[start : start + rows].tolist() == list(range(rows))
    begin, node, weight = data.graph.edges.values()  # type: ignore[union-attr]
    whole = torch.sparse_csr_tensor(begin, node, weight, expected.shape).to_dense().numpy()
    assert (whole > 0).tolist() == (expected | expected.T).tolist()
    with pytest.raises(
        DataError, match=f"{expected.sum()} different interactions train, but data.edges says at most 3"
    ):
        Graph(source=log, users=USERS, items=ITEMS, edges=3, split=RandomPerUser(valid=0.2, test=0.2)).open()
