"""What is decided of what was counted: a bad version is seen, an equal one is not, however often one looks."""

import json
from collections import deque

import numpy as np
import pytest

from rtrain.endpoint.canary import Canary, Limits
from rtrain.endpoint.routing import Routing, place
from rtrain.endpoint.tally import SAMPLE, WARM, Tally, alike, apart, bounds, share_bounds
from rtrain.errors import ConfigError


def tally(
    draw: np.random.Generator, answers: int, *, failed: float = 0.0, slow: float = 1.0, shift: float = 0.0
) -> Tally:
    found = Tally()
    for seconds, fails, score in zip(
        draw.lognormal(-4, 0.6, answers) * slow,
        draw.random(answers) < failed,
        draw.normal(shift, 1, answers),
        strict=True,
    ):
        found.count(500 if fails else 200, float(seconds))
        found.said([float(score)])
    return found


def looks(new: dict[str, float], limits: Limits, seed: int, most: int = 600) -> tuple[str, int]:
    """What is seen against a version as answers come in, a tenth of them its own; and after how many of its answers."""
    draw = np.random.default_rng(seed)
    mine, champion = Tally(), Tally()
    for _ in range(most // 10):
        mine.add(tally(draw, 10, **new))  # type: ignore[arg-type]
        champion.add(tally(draw, 90, failed=0.001))
        if why := limits.exceeded(mine, champion):
            return why, mine.answers
    return "", mine.answers


def test_an_equal_version_passes_however_often_it_is_looked_at() -> None:
    tight = Limits(failed=0.0, slower=1.0, slack_ms=0.0, drift=0.0)
    assert [looks({"failed": 0.001}, tight, seed)[0] for seed in range(40)] == [""] * 40


@pytest.mark.parametrize(
    ("new", "said", "within"),
    [
        ({"failed": 1.0}, "10 of its 10 answers failed", 10),
        ({"failed": 0.1}, "answers failed", 300),
        ({"slow": 3.0}, "a tenth of its answers took", 300),
        ({"shift": 1.0}, "its scores drifted", 400),
    ],
)
def test_a_bad_version_is_seen(new: dict[str, float], said: str, within: int) -> None:
    for seed in range(10):
        why, answers = looks(new, Limits(), seed)
        assert said in why and answers <= within, (why, answers)


def test_memory_that_grows_is_seen_of_each_replica() -> None:
    grows, champion = Tally(), Tally()
    for n in range(WARM + 10):
        grows.holds("a", 300_000_000 + n * 100_000_000)
        grows.holds("b", 300_000_000)
    assert grows.grown == 10 * 100_000_000 and Limits().exceeded(grows, champion).startswith(
        "a replica's memory grew by 1000 MB"
    )
    parts = [Tally() for _ in range(4)]
    for n in range(WARM + 10):
        parts[n // 8].holds("a", 300_000_000 + n * 100_000_000)
    for part in parts[1:]:
        parts[0].add(part)
    held = parts[0].memory["a"]
    assert (held.seen, held.last) == (WARM + 10, grows.memory["a"].last), "of what came in parts"
    assert 0 <= held.first - grows.memory["a"].first <= 8 * 100_000_000, "warm within one part of when it was"
    assert not Limits(grown_mb=None).exceeded(grows, champion)


def test_a_text_that_costs_more_is_seen_and_chance_is_not() -> None:
    draw = np.random.default_rng(0)
    for more, seen in ((0.0, False), (0.9, False), (1.6, True), (float("nan"), True), (float("inf"), True)):
        found = Tally()
        for part in range(20):
            newer = Tally()
            for _ in range(5):
                newer.costs(more + draw.normal(0, 0.5))
            found.add(newer)
            assert part >= 5 or not Limits().exceeded(found, Tally()), "too few to say"
        why = Limits().exceeded(found, Tally())
        assert bool(why) == seen and why.startswith("a token of what is asked costs it" if seen else ""), (more, why)
        assert not Limits(dearer=None).exceeded(found, Tally())
        json.dumps(found.to_json(), allow_nan=False)


def test_what_orders_the_other_way_round_is_seen_and_another_model_is_not() -> None:
    draw = np.random.default_rng(0)
    for true, seen in ((1.0, False), (0.3, False), (0.0, False), (-0.05, False), (-0.9, True), (-1.0, True)):
        found = Tally()
        for part in range(40):
            newer, old = Tally(), draw.normal(size=5)
            new = true * old + np.sqrt(1 - true**2) * draw.normal(size=5)
            newer.scores_both(zip(np.round(new, 2).tolist(), old.tolist(), strict=True))
            newer.scores_both([(float("nan"), 1.0)])
            found.add(newer)
            assert part >= 5 or not Limits().exceeded(found, Tally()), "too few to say"
        assert len(found.pairs) == 200
        why = Limits().exceeded(found, Tally())
        assert bool(why) == seen and why.startswith("it orders otherwise" if seen else ""), (true, why)
        assert not Limits(order=None).exceeded(found, Tally())
        assert abs(found.to_json()["order"] - true) < 0.25
    same = Tally()
    same.scores_both((0.5, float(n)) for n in range(100))
    assert not Limits().exceeded(same, Tally()) and same.to_json()["order"] is None


def test_ranks_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    both = draw.integers(0, 9, (200, 2)).astype(float)
    both[:, 1] += both[:, 0]
    assert alike(map(tuple, both))[0] == pytest.approx(stats.spearmanr(both[:, 0], both[:, 1]).statistic, abs=1e-12)


def test_a_refusal_of_what_the_champion_answers_is_a_failure() -> None:
    champion, new = Tally(), Tally()
    for _ in range(100):
        champion.count(200, 0.01)
        new.count(422, 0.01)
    assert not Limits().exceeded(new, champion), "the clients' own"
    for _ in range(10):
        new.refuses_alone()
    assert (new.failed, new.refused) == (10, 90)
    assert Limits().exceeded(new, champion) == "10 of its 100 answers failed, 0 of the champion's 100"


def test_nothing_is_said_of_what_is_not_looked_at_or_not_there() -> None:
    nothing = Limits(failed=None, slower=None, drift=None, order=None, dearer=None, grown_mb=None)
    assert looks({"failed": 1.0, "slow": 9.0, "shift": 9.0}, nothing, 0)[0] == ""
    assert Limits().exceeded(Tally(), Tally()) == ""


def test_bounds_hold_what_they_say() -> None:
    draw = np.random.default_rng(0)
    for q in (0.5, 0.9):
        truth = float(np.quantile(draw.normal(size=1_000_000), q))
        inside = [low <= truth <= high for low, high in (bounds(draw.normal(size=400), q) for _ in range(2000))]
        assert sum(inside) >= 1998, "four standard deviations, of a binomial that leans to one side"
    assert bounds(range(29), 0.5) == (-np.inf, np.inf)
    seen = draw.binomial(200, 0.03, size=2000)
    assert sum(low <= 0.03 <= high for low, high in (share_bounds(int(n), 200) for n in seen)) >= 1995
    assert share_bounds(0, 0) == (0.0, 1.0)
    same = [apart(draw.normal(size=100), draw.normal(size=300)) for _ in range(2000)]
    assert all(distance < chance for distance, chance in same)
    distance, _ = apart(np.arange(100), np.arange(50, 150))
    assert distance == pytest.approx(0.5)


def test_a_sample_is_bounded_and_has_the_newest() -> None:
    found = Tally()
    found.add(Tally(answers=9, seconds=deque(float(n) for n in range(SAMPLE + 5))))
    assert len(found.seconds) == SAMPLE and found.seconds[-1] == SAMPLE + 4 and found.answers == 9


def test_the_way_of_a_version() -> None:
    canary = Canary(steps=(0.1, 1.0), seconds=5, answers=3, patience_s=20, shadow=0.5)
    assert canary.shares == (0.0, 0.1, 1.0) and Canary(steps=(1.0,)).shares == (1.0,)
    assert not canary.over(Tally(answers=3), 4) and not canary.over(Tally(answers=2), 9)
    assert canary.over(Tally(answers=3), 5)
    assert not canary.unseen(Tally(answers=2), 19) and not canary.unseen(Tally(answers=3), 99)
    assert canary.unseen(Tally(answers=2), 21) == "2 answers in 21 s, where 3 are needed to judge it"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Canary(steps=()), "Canary.steps"),
        (lambda: Canary(steps=(0.5, 0.1)), "Canary.steps"),
        (lambda: Canary(steps=(0.0, 1.0)), "Canary.steps"),
        (lambda: Canary(steps=(0.5, 1.5)), "Canary.steps"),
        (lambda: Canary(shadow=1.5), "Canary.shadow"),
        (lambda: Canary(answers=-1), "Canary.answers"),
        (lambda: Canary(timeout_s=0), "Canary.timeout_s"),
        (lambda: Canary(seconds=60, patience_s=30), "Canary.patience_s: 30, less than the 60 s"),
        (lambda: Limits(slower=0.5), "Limits.slower"),
        (lambda: Limits(drift=float("nan")), "Limits.drift"),
        (lambda: Limits(dearer=-0.1), "Limits.dearer"),
        (lambda: Limits(order=1.5), "Limits.order"),
        (lambda: Limits(slack_ms=-1), "Limits.slack_ms"),
    ],
)
def test_what_cannot_be_is_refused(make: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()  # type: ignore[operator]


def test_who_asks_has_one_version_at_each_share_and_keeps_it_at_a_larger_one() -> None:
    keys = [f"user-{n}" for n in range(20_000)]
    before = set[str]()
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        routing = Routing(number=1, champion="a", candidate="b", share=share, salt="b")
        had = {key for key in keys if routing.chosen(key) == "b"}
        assert had == {key for key in keys if routing.chosen(key) == "b"} and before <= had
        assert abs(len(had) / len(keys) - share) <= 4 * np.sqrt(share * (1 - share) / len(keys))
        before = had
    assert {Routing(number=1, champion="a").chosen(key) for key in keys} == {"a"}
    other = Routing(number=1, champion="a", candidate="c", share=0.1, salt="c")
    here = Routing(number=1, champion="a", candidate="b", share=0.1, salt="b")
    both = sum(other.chosen(key) == "c" and here.chosen(key) == "b" for key in keys)
    assert both < 2 * 0.01 * len(keys), "the same ones are tried on each time"
    assert place("user-1") == place("user-1") and place("\ud800") < 1
    # blake2b's first 8 bytes as they are by its definition, so in each process and release alike.
    assert place("") == pytest.approx(int("e4a6a0577479b2b4", 16) / 2**64, abs=1e-12)
