"""Two stages answer as the two models do, one after the other, put together by hand."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtrain.errors import ConfigError, DataError, RtrainWarning
from rtrain.export.artifact import Predictor
from rtrain.export.encoders import Encoders
from rtrain.schema import Id, IdSequence
from rtrain.stages.config import TwoStages
from rtrain.stages.features import Known, NoFeatures, Of, SQLite, Store, StoreError
from rtrain.stages.filters import AtMost, Only
from rtrain.stages.fit import refuse_heads
from rtrain.stages.recommender import Answer, Recommender
from tests.unit.stages.shop import AGES, ITEMS, PRICES, SCHEMA, USERS, ranker, retriever


@dataclass(frozen=True)
class Late:
    """A store that is too late, or breaks, for one of the two."""

    of: str
    error: bool = False

    def open(self) -> Store:
        return _Late(self)


class _Late:
    def __init__(self, late: Late):
        self.late = late

    async def get(self, of: Of, names: Sequence[Any]) -> list[Known]:
        if of == self.late.of:
            if self.late.error:
                raise ConnectionError("away")
            await asyncio.sleep(5)
        return [{"price": PRICES[n]} if of == "item" else {"age": AGES[n]} for n in names]

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> TwoStages:
    folder = tmp_path_factory.mktemp("shop")
    store = SQLite(path=f"{folder}/features.db")
    store.fill("item", {i: {"price": PRICES[i], "shelf": i % 3} for i in range(ITEMS)})
    store.fill("user", {u: {"age": AGES[u]} for u in range(USERS - 1)})  # of the last one nothing is known
    return TwoStages(
        retriever=retriever(folder), ranker=ranker(folder), candidates=25, features=store, timeout_ms=30_000
    )


@pytest.fixture(scope="module")
def recommender(stages: TwoStages) -> Recommender:
    return Recommender(stages)


def by_hand(stages: TwoStages, user: int, k: int, seen: list[int], hour: float | None) -> list[tuple[int, float]]:
    found = Encoders(stages.retriever).recommend([user], stages.candidates, seen=[seen])[0]
    rows: list[Mapping[str, Any]] = [
        {"user": user, "item": item, "price": PRICES[item]}
        | ({"age": AGES[user]} if user < USERS - 1 else {})
        | ({"hour": hour} if hour is not None else {})
        for item, _ in found
    ]
    scores = np.array(Predictor(stages.ranker).predict(rows))
    order = np.argsort(-scores, kind="stable")[:k]
    return [(rows[at]["item"], float(scores[at])) for at in order]


def alike(found: list[tuple[Any, float]], wanted: list[tuple[Any, float]]) -> bool:
    """Batches of another size round otherwise, by float32's last bits."""
    return [i for i, _ in found] == [i for i, _ in wanted] and np.allclose(
        [s for _, s in found], [s for _, s in wanted], atol=1e-6
    )


def answer(recommender: Recommender, *wanted: Any) -> list[Answer]:
    return asyncio.run(recommender.answer(wanted))


def test_answers_are_those_of_both_models_one_after_the_other(stages: TwoStages, recommender: Recommender) -> None:
    seen = [[0, 1, 2]] * USERS
    context: list[Known] = [{"hour": float(u % 24)} if u % 2 else {} for u in range(USERS)]
    everyone = recommender.want(list(range(USERS)), 6, seen=seen, context=context)
    several = [recommender.want([u], 1 + u % 25) for u in range(5)]
    first, *others = answer(recommender, everyone, *several)
    for user, found in enumerate(first.lists):
        hour = float(user % 24) if user % 2 else None
        assert alike(found, by_hand(stages, user, 6, [0, 1, 2], hour)), user
    for user, one in enumerate(others):
        assert alike(one.lists[0], by_hand(stages, user, 1 + user % 25, [], None))
        assert not one.without and not one.problem


def test_the_order_is_the_ranking_models(recommender: Recommender) -> None:
    found = answer(recommender, recommender.want([3], 25))[0].lists[0]
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    first_stage = [i for i, _ in recommender.encoders.recommend([3], 25)[0]]
    assert [i for i, _ in found] != first_stage and {i for i, _ in found} == set(first_stage)


def test_filters_come_after_the_ranking(stages: TwoStages) -> None:
    rules = (Only(feature="shelf", values=(0, 1)), AtMost(feature="shelf", items=2))
    found = answer(some := Recommender(replace(stages, filters=rules)), some.want([3], 25))[0].lists[0]
    whole = by_hand(stages, 3, 25, [], None)
    wanted = [pair for shelf in (0, 1) for pair in [p for p in whole if p[0] % 3 == shelf][:2]]
    assert alike(found, sorted(wanted, key=lambda pair: -pair[1]))


def test_who_is_not_known_is_offered_what_is_popular_as_far_as_filters_let_it(stages: TwoStages) -> None:
    some = Recommender(replace(stages, filters=(Only(feature="shelf", values=(0, 1)),)))
    found = answer(some, some.want([3, USERS + 7, 4], 25, unknown="popular"), some.want([5], 2))
    assert (found[0].unknown, found[1].unknown) == ([1], [])
    popular = some.encoders.recommend([USERS + 7], 25, unknown="popular")[0]
    assert found[0].lists[1] == [pair for pair in popular if pair[0] % 3 < 2]
    for user, those in zip((3, 4), found[0].lists[::2], strict=True):
        assert alike(those, [pair for pair in by_hand(stages, user, 25, [], None) if pair[0] % 3 < 2])
    nobody = answer(some, some.want([USERS, USERS + 7], 3, unknown="popular"))[0]
    assert nobody.unknown == [0, 1] and nobody.lists == [[pair for pair in popular if pair[0] % 3 < 2][:3]] * 2
    with pytest.raises(DataError, match=f"there is no user {USERS + 7}"):
        some.want([USERS + 7], 3)


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("of", ["item", "user"])
def test_a_store_that_is_late_or_away_costs_no_answer(stages: TwoStages, of: str, error: bool) -> None:
    late = replace(stages, features=Late(of, error), timeout_ms=200, defaults={"price": 0.25})
    some = Recommender(late)
    began = time.monotonic()
    found = answer(some, some.want([3], 4))[0]
    assert found.without == [of] and len(found.lists[0]) == 4 and time.monotonic() - began < 4.5, "not the store's 5 s"
    rows = [
        {"user": 3, "item": i, "price": 0.25 if of == "item" else PRICES[i]}
        | ({"age": AGES[3]} if of == "item" else {})
        for i, _ in found.lists[0]
    ]
    assert np.allclose(some.ranker.predict(rows), [s for _, s in found.lists[0]], atol=1e-6)


@pytest.mark.parametrize("error", [True, False])
def test_what_is_late_and_has_no_default_is_said(stages: TwoStages, error: bool) -> None:
    """It is nobody's fault who asks, and not the feature's that is null."""
    some = Recommender(replace(stages, features=Late("item", error), timeout_ms=200))
    (found,) = answer(some, some.want([3], 4))
    assert not found.lists and found.without == ["item"]
    assert found.problem == (
        "features of each item did not come in 200 ms, or their store failed, and TwoStages.defaults has no value of "
        "'price'. Ask again; the log of the replicas says why"
    )
    in_time = Recommender(replace(stages, features=Late("user", error), timeout_ms=200, defaults={"price": 0.25}))
    (found,) = answer(in_time, in_time.want([3], 4))
    assert found.lists and found.without == ["user"] and not found.problem, "age may be missing"


def test_one_that_cannot_be_ranked_takes_no_other_along(recommender: Recommender) -> None:
    bad = replace(recommender.want([1], 3), context=[{"hour": "late"}])  # as of a store that holds such a thing
    good = recommender.want([2], 3)
    first, second = answer(recommender, bad, good)
    assert "Could not convert 'late'" in first.problem and not first.lists
    assert not second.problem and len(second.lists[0]) == 3


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ([1, 2], "they are no mapping of columns but [1, 2]"),
        (5, "they are no mapping of columns but 5"),
        ("x", "they are no mapping of columns but 'x'"),
        ({"age": "old", "shelf": 1}, "age: Input should be a valid number"),
        ({"age": 1e300, "shelf": 1}, "age: Value error, it must be a number from "),
        ({"age": [1]}, "age: Input should be a valid number"),
    ],
)
@pytest.mark.parametrize("default", [{}, {"age": 30.0}])
def test_what_a_store_has_and_is_no_value_is_as_if_it_had_none(
    known: Any,
    why: str,
    default: dict[str, float],
    stages: TwoStages,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    some = Recommender(replace(stages, defaults=default))
    get = some.known.store.get

    asked, passes, predict = list[str](), list[int](), some.ranker.predict

    async def spoiled(of: Any, names: Any) -> Any:
        asked.append(of)
        return [
            known if of == "user" and name == 3 else one for name, one in zip(names, await get(of, names), strict=True)
        ]

    monkeypatch.setattr(some.known.store, "get", spoiled)
    monkeypatch.setattr(some.ranker, "predict", lambda rows: passes.append(len(rows)) or predict(rows))
    first, second = answer(some, some.want([3], 4), some.want([2], 4))
    assert sorted(asked) == ["item", "user"] and len(passes) <= 2, "all who ask together, without what does not fit"
    assert not first.problem and not second.problem, "and whoever asks beside it hears nothing of it"
    rows = [{"user": 3, "item": item, "price": PRICES[item]} | default for item, _ in first.lists[0]]
    assert np.allclose(some.ranker.predict(rows), [score for _, score in first.lists[0]], atol=1e-6)
    assert alike(second.lists[0], by_hand(stages, 2, 4, [], None))
    answer(some, some.want([3], 4))
    (line,) = caplog.messages  # once a minute
    assert line.startswith("features of user 3 are left out: ") and why in line


def test_it_does_not_start_where_a_feature_is_missing(stages: TwoStages) -> None:
    with pytest.raises(ConfigError, match=r"of each item, which features of none of 8 have \(0, 1, 2, ...\)"):
        asyncio.run(Recommender(replace(stages, features=NoFeatures())).start())
    asyncio.run(Recommender(replace(stages, features=NoFeatures(), defaults={"price": 0.0})).start())
    asyncio.run(Recommender(stages).start())
    asyncio.run(Recommender(replace(stages, features=Late("item", error=True))).start())


def test_a_filter_by_what_no_item_has_is_warned_of(stages: TwoStages, recwarn: pytest.WarningsRecorder) -> None:
    rules = (AtMost(feature="shelf", items=3), AtMost(feature="shelv", items=3))
    asyncio.run(Recommender(replace(stages, filters=rules)).start())
    told = [str(one.message) for one in recwarn if isinstance(one.message, RtrainWarning)]
    assert told == [
        "TwoStages.filters: AtMost asks for 'shelv', which the store knows of none of the first 8 items; did you mean "
        "'shelf'?"
    ]


def test_a_store_that_refuses_does_not_start(stages: TwoStages, monkeypatch: pytest.MonkeyPatch) -> None:
    some = Recommender(stages)

    async def refused(of: Any, names: Any) -> Any:
        raise StoreError("features: wrong password")

    monkeypatch.setattr(some.known.store, "get", refused)
    with pytest.raises(ConfigError, match="wrong password"):
        asyncio.run(some.start())


def test_what_a_request_does_not_say_is_named_by_whose_it_is(stages: TwoStages, tmp_path: Path) -> None:
    hours = replace(
        SCHEMA, features=tuple(replace(f, missing=None) if f.name == "hour" else f for f in SCHEMA.features)
    )
    some = Recommender(replace(stages, ranker=ranker(tmp_path, schema=hours)))
    wanted = some.want([1, 2], 3, context=[{"hour": 3.0}, {}])
    (found,) = answer(some, wanted)
    assert found.problem == (
        "context[1]: the ranking model needs 'hour', which neither the request nor TwoStages.defaults say"
    )
    (found,) = answer(some, some.want([1, 2], 3, context=[{"hour": 3.0}, {"hour": 4.0}]))
    assert not found.problem and len(found.lists) == 2


def test_an_item_whose_features_lack_what_is_needed_is_no_candidate(
    stages: TwoStages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is new in the catalogue costs nobody an answer."""
    store = SQLite(path=f"{tmp_path}/features.db")
    store.fill("item", {i: {"price": PRICES[i]} for i in range(1, ITEMS)} | {2: {"price": "much"}})
    some = Recommender(replace(stages, features=store, candidates=ITEMS, defaults={"age": 30.0}))
    found, other = answer(some, some.want([3], ITEMS), some.want([5, USERS + 7], ITEMS, unknown="popular"))
    assert not found.problem and {item for item, _ in found.lists[0]} == set(range(ITEMS)) - {0, 2}
    rows = [{"user": 3, "item": item, "price": PRICES[item], "age": 30.0} for item, _ in found.lists[0]]
    assert np.allclose(some.ranker.predict(rows), [score for _, score in found.lists[0]], atol=1e-6)
    assert [len(those) for those in other.lists] == [ITEMS - 2, ITEMS], "what is popular is not ranked"
    assert caplog.messages == [
        "item 0 is no candidate: its features lack what is needed: price",
        "features of item 2 are left out: price: Input should be a valid number",
    ]
    (said,) = answer(some, some.want([3], ITEMS, context=[{"price": 1.0}]))
    assert len(said.lists[0]) == ITEMS and not said.problem
    with pytest.raises(DataError, match=r"context\[0\].item: who asks and what is offered are not said by it"):
        some.want([3], 4, context=[{"item": 2}])


def test_where_no_item_has_what_is_needed_it_is_said(stages: TwoStages) -> None:
    some = Recommender(replace(stages, features=NoFeatures()))
    (found,) = answer(some, some.want([3], 4))
    assert not found.lists and re.fullmatch(
        r"features: those of item \d+ lack 'price', which the ranking model needs and TwoStages.defaults does not have",
        found.problem,
    )


def test_the_first_names_may_be_no_ones(stages: TwoStages, tmp_path: Path) -> None:
    """As number 0 often is: some of those who are looked at as it starts have to be known."""
    store = SQLite(path=f"{tmp_path}/features.db")
    store.fill("item", {i: {"price": PRICES[i]} for i in range(1, ITEMS)})
    store.fill("user", {u: {"age": AGES[u]} for u in range(1, USERS)})
    asyncio.run(Recommender(replace(stages, features=store)).start())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"item": "itm"}, "TwoStages.item: the ranking model has no 'itm'; did you mean 'item'"),
        ({"user": "who"}, "TwoStages.user: the ranking model has no 'who'"),
        ({"item": "price"}, "TwoStages.item: 'price' of the ranking model is no Id"),
        ({"label": "like"}, "TwoStages.label: the ranking model has no 'like'. It has label"),
        ({"history": "item"}, "TwoStages.history: the retrieval model knows users by name"),
        ({"candidates": 0}, "must be at least 1, got 0"),
        ({"timeout_ms": 0}, "must be above 0, got 0"),
        ({"defaults": {"nope": 1}}, "TwoStages.defaults: the ranking model has no 'nope'"),
        ({"defaults": {"price": "x"}}, "TwoStages.defaults: 'price' cannot be 'x' (Input should be a valid number"),
        ({"defaults": {"item": 3}}, "TwoStages.defaults: 'item' is who asks, or what is offered. Leave it out"),
        ({"features": "features.db"}, "TwoStages.features: a store, as SQLite(path='features.db')"),
    ],
)
@pytest.mark.parametrize("refuses", [Recommender, refuse_heads])
def test_stages_that_do_not_fit(
    stages: TwoStages, refuses: Callable[[TwoStages], object], changed: dict[str, Any], said: str
) -> None:
    refuses(stages)
    with pytest.raises(ConfigError) as refused:
        refuses(replace(stages, **changed))
    assert said in str(refused.value)


@pytest.mark.parametrize("refuses", [Recommender, refuse_heads])
def test_two_models_of_one_kind(stages: TwoStages, refuses: Callable[[TwoStages], object]) -> None:
    with pytest.raises(ConfigError, match=r"TwoStages.retriever: \S+ is of no model that finds items"):
        refuses(replace(stages, retriever=stages.ranker))
    with pytest.raises(ConfigError, match=r"TwoStages.ranker: \S+ is of no model that ranks rows"):
        refuses(replace(stages, ranker=stages.retriever))


def test_models_that_call_items_otherwise(stages: TwoStages, tmp_path: Path) -> None:
    few = replace(
        SCHEMA, features=(SCHEMA.features[0], Id(name="item", rows=2 * ITEMS, entity="item"), *SCHEMA.features[2:])
    )
    more = ranker(tmp_path, few, "more")
    assert Recommender(replace(stages, ranker=more)).ranker.asked.ids[1].table_rows == 2 * ITEMS
    words = replace(few, features=(few.features[0], Id(name="item", rows=99, hashed="words"), *few.features[2:]))
    with pytest.raises(ConfigError, match="calls each item by whole numbers, 'item' of the ranking model by strings"):
        Recommender(replace(stages, ranker=ranker(tmp_path, words, "words")))
    half = replace(few, features=(few.features[0], Id(name="item", rows=ITEMS // 2), *few.features[2:]))
    with pytest.raises(ConfigError, match=rf"finds item {ITEMS - 1}, the ranking model knows {ITEMS // 2}"):
        Recommender(replace(stages, ranker=ranker(tmp_path, half, "half")))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"whom": [USERS]}, "there is no user 40"),
        ({"k": 26}, "k: 25 candidates are ranked, got 26"),
        ({"context": []}, "context: 0 for 1 who ask"),
        ({"users": [1]}, "users: this model knows who asks by name"),
        (
            {"context": [{"huor": 1}]},
            "context[0]: the ranking model has no column 'huor' to be said; did you mean 'hour'",
        ),
        ({"context": [{"hour": "late"}]}, "context[0].hour: Input should be a valid number"),
        ({"context": [{"hour": float("nan")}]}, "context[0].hour: Input should be a finite number"),
        ({"context": [{"hour": 1.0}] * 400_000, "whom": [1] * 400_000}, "bytes for each of 25 candidates; at most"),
        ({"context": [{"item": 1}]}, "context[0].item: who asks and what is offered are not said by it"),
    ],
)
def test_questions_that_do_not_fit(recommender: Recommender, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as refused:
        recommender.want(**{"whom": [1], "k": 3} | asked)
    assert said in str(refused.value)


def test_a_model_of_histories_gives_its_items_to_the_ranking_model(tmp_path: Path) -> None:
    last = IdSequence(name="last", rows=ITEMS, table="item", max_length=3)
    schema = replace(
        SCHEMA, features=(Id(name="item", rows=ITEMS, entity="item"), *SCHEMA.features[2:], last), group=""
    )
    stages = TwoStages(
        retriever=retriever(tmp_path, histories=True), ranker=ranker(tmp_path, schema), candidates=10, history="last",
        features=Late(of="nobody"), timeout_ms=30_000,
    )  # fmt: skip
    some = Recommender(stages)
    found = answer(some, some.want([[1, 2, 3, 4], [5]], 4, users=[3, 9]), some.want([[7]], 2))
    assert [[len(of) for of in one.lists] for one in found] == [[4, 4], [2]]
    assert not {1, 2, 3, 4} & {item for item, _ in found[0].lists[0]}, "what was had is not offered again"
    for (one, at), had, age in (((0, 0), [1, 2, 3, 4], AGES[3]), ((0, 1), [5], AGES[9]), ((1, 0), [7], None)):
        of = found[one].lists[at]
        rows = [{"item": i, "price": PRICES[i], "last": had} | ({"age": age} if age else {}) for i, _ in of]
        assert np.allclose(some.ranker.predict(rows), [s for _, s in of], atol=1e-6)
    with pytest.raises(ConfigError, match="TwoStages.history: the ranking model has no 'lst'; did you mean 'last'"):
        Recommender(replace(stages, history="lst"))
