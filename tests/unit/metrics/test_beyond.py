"""What accuracy does not see of lists: by hand, over ranks, and with what data know of their items."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtrain
from rtrain.data.alike import HadTogether
from rtrain.data.holdout import LeaveOneOut
from rtrain.data.negatives import Negatives
from rtrain.data.popular import of_popular
from rtrain.data.retrieval import Pairs
from rtrain.errors import ConfigError
from rtrain.metrics.beyond import Coverage, Diversity, Novelty, PopularityBias, Serendipity
from rtrain.metrics.state import Metric, Retrieved, Scored, takes

LISTS = Retrieved(
    # User 0 finds items 5, 6, 7 and user 1 items 5, 6, and misses 8.
    logits=-np.array([0.0, 1, 2, 0, 1, 3]), labels=np.array([1.0, 0, 1, 0, 0, 1]), groups=np.array([0, 0, 0, 1, 1, 1]),
    items=np.array([5, 6, 7, 5, 6, 8]), often=np.array([7.0, 3, 0, 7, 3, 0]),
    popularity=np.array([0.5, 0.25, 0.125, 0.5, 0.25, 0.125]), had=np.log([4.0, 4, 4, 2, 2, 2]), catalogue=10,
    expected=lambda groups, items: np.array([[1, 3, 5], [0, 2, 4]])[groups, (items - 5) % 3],
    alike=lambda left, right: (left + right) / 20,
)  # fmt: skip
BY_HAND: list[tuple[Metric, float]] = [
    (Coverage(k=1), 0.1),
    (Coverage(k=3), 0.3),
    (Novelty(k=1), 1.0),
    (Novelty(k=3), (1 + 2 + 3 + 1 + 2) / 5),
    (PopularityBias(k=1), np.log(8) / np.log([4, 2]).mean()),
    (PopularityBias(k=2), np.log([8, 4, 8, 4]).mean() / np.log([4, 2]).mean()),
    (Diversity(k=1), np.nan),
    (Diversity(k=2), 1 - 11 / 20),
    (Diversity(k=3), (1 - (11 + 12 + 13) / 60 + 1 - 11 / 20) / 2),
    (Serendipity(k=1), 1 / 2),
    (Serendipity(k=2), 0.0),
    (Serendipity(k=3), 1 / 6),
]


def part(rows: Any) -> Retrieved:
    arrays = {name: value[rows] for name, value in vars(LISTS).items() if isinstance(value, np.ndarray)}
    return replace(LISTS, **arrays)


@pytest.mark.parametrize(("metric", "expected"), BY_HAND, ids=lambda value: getattr(value, "name", ""))
def test_lists_worked_by_hand_over_one_rank_and_over_three(metric: Metric, expected: float) -> None:
    assert metric.value(metric.partial(LISTS)) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    ranks = [part(LISTS.groups == 1), part(LISTS.groups == 0), part(LISTS.groups == 9)]  # one has no user
    partials = [metric.partial(rank) for rank in ranks]
    assert metric.value(partials[0] + partials[1] + partials[2]) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert np.isnan(metric.value(metric.partial(replace(ranks[2], catalogue=0))))


def test_they_are_of_retrieval_models_alone() -> None:
    for metric in (Coverage(), Diversity(), Novelty(), PopularityBias(), Serendipity()):
        assert takes(metric, Retrieved) and not takes(metric, Scored) and metric.name.endswith("@10")
    with pytest.raises(ConfigError, match=r"Novelty.k: must be at least 1, got 0"):
        Novelty(k=0)


def test_the_data_tell_how_often_training_had_an_item(tmp_path: Path) -> None:
    rows = {0: [1, 2, 3, 4], 1: [1, 2, 5, 6], 2: [1, 7, 2, 3]}
    (tmp_path / "log.txt").write_text("\n".join(" ".join(map(str, [user, *items])) for user, items in rows.items()))
    source = str(tmp_path / "log.txt")
    data = Pairs(source=source, users=3, items=8, time="", split=LeaveOneOut(), negatives=Negatives(count=1)).open()
    trained = {user: items[:2] for user, items in rows.items()}  # the last is tested on, the one before it validated
    often = {item: sum(item in had for had in trained.values()) for item in range(1, 8)}
    start = data.numbers("test").start
    users, items = np.repeat(np.arange(3), 7), np.tile(np.arange(1, 8), 3)
    place = np.tile(np.arange(7.0), 3)
    told = data.told(Retrieved(-place, np.zeros(21), users + start, users + start, items))
    assert told.often.tolist() == [often[item] for item in items]
    assert told.popularity == pytest.approx([(often[item] + 1) / (6 + 7) for item in items])
    assert told.had == pytest.approx([np.mean(np.log1p([often[i] for i in trained[user]])) for user in users])
    assert told.catalogue == 7 and told.popularity[:7].sum() == pytest.approx(1)


def test_likeness_is_the_cosine_of_who_had_both() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 600), rng.integers(3, 30, 600)
    alike = HadTogether(users, items)
    had = {item: set(users[items == item].tolist()) for item in range(32)}
    left, right = (x.ravel() for x in np.meshgrid(np.arange(32), np.arange(32)))
    by_hand = [
        len(had[a] & had[b]) / np.sqrt(len(had[a]) * len(had[b])) if had[a] and had[b] else 0.0
        for a, b in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert alike(left, right) == pytest.approx(by_hand, abs=1e-12)
    assert HadTogether(users[:0], items[:0])(left, right).tolist() == [0.0] * len(left)


def test_likeness_looks_up_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    users, items, left, right = rng.integers(0, 20, 200), *rng.integers(0, 10, (3, 200))
    whole = HadTogether(users, items)(left, right)
    monkeypatch.setattr("rtrain.data.alike.LOOKED_UP", 3)
    assert HadTogether(users, items)(left, right).tolist() == whole.tolist()


def test_what_is_expected_is_the_place_by_popularity_among_what_a_user_may_be_shown() -> None:
    data = rtrain.Pairs(source="ml-100k", users=944, items=1683, negatives=Negatives(count=1)).open()
    popular = of_popular("test", data, data.often, [rtrain.NDCG(k=30)])
    assert popular.items is not None
    found = popular.logits > -30
    told = data.told(popular)
    expected = told.expected(popular.groups, popular.items)
    assert expected[found].tolist() == (-popular.logits[found]).astype(int).tolist()
    assert expected[~found].min() >= 30
    assert Serendipity(k=30).value(Serendipity(k=30).partial(told)) == 0.0
