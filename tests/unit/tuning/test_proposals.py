"""What is tried next: the same whenever the same is known, also by a search that was killed and goes on."""

from collections.abc import Callable
from typing import Any

import pytest

from rtrain.errors import ConfigError
from rtrain.tuning.journal import Entry
from rtrain.tuning.options import Search
from rtrain.tuning.proposals import Proposals
from rtrain.tuning.space import Drawn, changes, choice, integers, loguniform, storable

SPACE = {
    "kind": choice("a", ("b", 1)),
    "lr": loguniform(1e-4, 1e-1),
    "layers": integers(1, 4).when("kind", ("b", 1)),
}


def proposals(sampler: Any = "random", objectives: Any = None, **options: Any) -> Proposals:
    return Proposals(SPACE, Search(sampler=sampler, **options), objectives or {"auc": "max"}, seed=3)


def entry(number: int, drawn: Drawn, **more: Any) -> Entry:
    spelled = {key: storable(value) for key, value in changes(SPACE, drawn).items()}
    return Entry(number=number, drawn=drawn, changes=spelled, **more)


def finished(number: int, drawn: Drawn) -> Entry:
    value = drawn["lr"] + drawn["kind"]
    return entry(number, drawn, ended="finished", values={"auc": value, "seconds": 2.0}, step=10)


def one_after_the_other(make: Callable[[], Proposals], count: int, killed_after: tuple[int, ...] = ()) -> list[Drawn]:
    """Trials one at a time; at some numbers the process dies after a draw, and another one goes on."""
    known: list[Entry] = []
    found = list[Drawn]()
    at = make()
    for number in range(count):
        drawn = at.draw(number)
        assert drawn is not None
        found.append(drawn)
        known.append(entry(number, drawn))
        if number in killed_after:
            at = make()
            at.replay(known, {})
        known[-1] = finished(number, drawn)
        at.tell(known[-1], [])
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_killed_search_proposes_what_an_undisturbed_one_does(sampler: Any) -> None:
    def make() -> Proposals:
        return proposals(sampler, trials=12)

    assert one_after_the_other(make, 12) == one_after_the_other(make, 12, killed_after=(2, 3, 7))


def test_other_seeds_and_numbers_give_other_values() -> None:
    at = proposals()
    assert at.draw(0) != at.draw(1)
    assert Proposals(SPACE, Search(sampler="random"), {"auc": "max"}, seed=4).draw(0) != proposals().draw(0)


def test_a_sampler_that_learns_comes_closer() -> None:
    """The surrogate grows with `lr` and `kind`: the last third of TPE's proposals lies above that of chance."""

    def mean(sampler: Any) -> float:
        found = one_after_the_other(lambda: proposals(sampler, trials=30), 30)[20:]
        return sum(drawn["lr"] + drawn["kind"] for drawn in found) / len(found)

    assert mean("tpe") > mean("random")


def test_a_grid_ends() -> None:
    space = {"kind": choice("a", "b"), "layers": integers(1, 2)}
    at = Proposals(space, Search(sampler="grid"), {"auc": "max"}, seed=0)
    found = [at.draw(number) for number in range(5)]
    assert found == [{"kind": k, "layers": n} for k in (0, 1) for n in (1, 2)] + [None]


def test_how_trials_ended_is_told() -> None:
    at = proposals()
    drawn = [at.draw(number) for number in range(3)]
    at.tell(finished(0, drawn[0]), [])  # type: ignore[arg-type]
    at.tell(entry(1, drawn[1], ended="stopped"), [{"step": 10, "auc": 0.5}, {"step": 20, "auc": 0.6}])  # type: ignore[arg-type]
    at.tell(entry(2, drawn[2], ended="failed", error="nan"), [])  # type: ignore[arg-type]
    assert [trial.state.name for trial in at.study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert at.study.trials[1].intermediate_values == {10: 0.5, 20: 0.6}


def test_several_objectives() -> None:
    at = proposals("tpe", {"auc": "max", "seconds": "min"})
    drawn = at.draw(0)
    assert drawn is not None
    at.tell(finished(0, drawn), [])
    assert at.study.trials[0].values == [drawn["lr"] + drawn["kind"], 2.0]


def test_an_earlier_search_is_learnt_from() -> None:
    drawn = {"kind": 1.0, "lr": 0.01, "layers": 2.0}
    earlier = [finished(0, drawn), entry(1, drawn, ended="stopped"), finished(2, {"kind": 0.0, "lr": 0.02})]
    other = {
        "kind": choice(("b", 1), "c"),
        "lr": loguniform(1e-3, 1e-1),
        "layers": integers(1, 9).when("kind", ("b", 1)),
    }
    at = Proposals(other, Search(), {"auc": "max"}, seed=0)
    assert at.warm(earlier) == 1  # the third one's kind is not in this space
    assert at.study.trials[0].params == {"kind": 0, "lr": 0.01, "layers": 2}
    assert at.study.trials[0].value == 1.01
    with pytest.raises(ConfigError, match="none of the earlier search's finished trials lies in this space"):
        Proposals({"lr": loguniform(0.5, 0.9)}, Search(), {"auc": "max"}, seed=0).warm(earlier)


def test_the_field_that_matters_is_the_important_one() -> None:
    space = {"lr": loguniform(1e-4, 1e-1), "idle": integers(1, 9)}
    at = Proposals(space, Search(sampler="random"), {"auc": "max"}, seed=0)
    assert at.importances() == {}
    for number in range(16):
        drawn = at.draw(number)
        assert drawn is not None
        at.tell(Entry(number=number, drawn=drawn, changes={}, ended="finished", values={"auc": drawn["lr"]}), [])
    assert at.importances()["lr"] > 0.6 > at.importances()["idle"]
