"""What a search may change, and what of it is refused before anything starts."""

from typing import Any

import pytest

import rtrain
from rtrain.errors import ConfigError
from rtrain.tuning.options import Asha, Median, Population, Search
from rtrain.tuning.schedulers import Turns
from rtrain.tuning.space import changes, check_space, choice, draw, grid, integers, loguniform, uniform
from tests.unit.tuning.conftest import Chosen

LR = uniform(0.1, 1)
CONDITIONAL = {
    "model.cross": choice("low", "high"),
    "optim.lr": loguniform(1e-4, 1e-1).when("model.cross", "high"),
    "model.layers": integers(1, 3),
}


def test_what_depends_on_another_field_is_asked_for_after_it_and_only_then() -> None:
    trial = Chosen({"model.cross": 0, "model.layers": 2})
    assert draw(CONDITIONAL, trial) == {"model.cross": 0, "model.layers": 2}
    trial = Chosen({"model.cross": 1, "model.layers": 2, "optim.lr": 0.01})
    drawn = draw(dict(reversed(CONDITIONAL.items())), trial)
    assert changes(CONDITIONAL, drawn) == {"model.layers": 2, "model.cross": "high", "optim.lr": 0.01}
    assert isinstance(changes(CONDITIONAL, {"model.layers": 2.0})["model.layers"], int)


def test_a_grid_has_each_combination_once() -> None:
    space = {"a": choice("x", "y"), "b": integers(1, 3), "c": choice(5, 6).when("a", "y")}
    found = list(grid(space))
    assert len(found) == 3 + 3 * 2
    assert {"a": 0, "b": 1} in found
    assert {"a": 1, "b": 3, "c": 1} in found
    assert next(grid({"seed": integers(0, 10**12), "a": choice("x", "y")})) == {"a": 0, "seed": 0}
    with pytest.raises(ConfigError, match=r"lr: a grid needs values that can be counted, got uniform\(0, 1\)"):
        list(grid({"lr": uniform(0, 1)}))


def test_an_architecture_is_a_choice(run: Any) -> None:
    space = {
        "model": choice(rtrain.DLRM(dim=16, top=(8,)), rtrain.DCNv2(dim=8, layers=1)),
        "model.layers": integers(1, 3).when("model", rtrain.DCNv2(dim=8, layers=1)),
    }
    check_space(run, space)
    changed = rtrain.override(run, changes(space, {"model": 1, "model.layers": 3}))
    assert changed.model == rtrain.DCNv2(dim=8, layers=3)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "the recipe gives no search space"),
        ({"optim.lrr": uniform(0, 1)}, "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'"),
        ({"optim.lr": choice(0.1, "much")}, "optim.lr: "),
        (
            {"optim.lr": LR.when("seeed", 1), "seed": choice(1, 2)},
            "seeed is not in it; did you mean 'seed'",
        ),
        ({"optim.lr": LR.when("seed", 1), "seed": integers(1, 2)}, r"seed is no choice\("),
        (
            {"optim.lr": LR.when("seed", 3), "seed": choice(1, 2)},
            r"seed is 3, which is not among \(1, 2\)",
        ),
        (
            {"seed": choice(1, 2).when("global_batch", 8), "global_batch": choice(8, 16).when("seed", 1)},
            "each counts only when another of them does",
        ),
        ({"storage": choice("a", "b")}, "storage is what the search sets for each trial. Leave it out"),
    ],
)
def test_a_space_that_the_run_cannot_take(run: Any, space: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_space(run, space)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: loguniform(0, 1), "0 < low < high"),
        (lambda: uniform(2, 1), "low < high"),
        (lambda: uniform(0, float("inf")), "low < high"),
        (lambda: integers(1, 1), "low < high"),
        (lambda: choice(), "at least one value"),
        (lambda: choice(1).when("a"), "at least one value of a"),
        (lambda: Search(trials=0), "search.trials: must be at least 1"),
        (lambda: Search(concurrent=0), "search.concurrent: must be at least 1"),
        (lambda: Search(hours=-1.0), "search.hours: must be above 0"),
        (lambda: Search(cost=5.0), "search.cost: 5 needs a price"),
        (lambda: Search(price=5.0), "limits nothing without search.cost"),
        (lambda: Search(objectives=("auc", "auc")), "one is there twice"),
        (lambda: Search(objectives=("auc", "seconds"), scheduler=Asha()), "orders trials by one value"),
        (lambda: Search(trials=1, scheduler=Population(every=10), sampler="random"), "a population has at least 2"),
        (lambda: Search(scheduler=Population(every=10)), "tpe learns from trials that have ended"),
        (lambda: Asha(grace=0), "grace: must be at least 1"),
        (lambda: Asha(factor=1.0), "factor: must be above 1"),
        (lambda: Median(least=0), "least: must be at least 1"),
        (lambda: Population(every=0), "every: must be at least 1"),
        (lambda: Population(every=5, share=0.6), "share: must be above 0 and at most 0.5"),
        (lambda: Population(every=5, anew=2.0), "anew: must be from 0 to 1"),
    ],
)
def test_options_that_are_none(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(("furthest", "done"), [(0, 0), (10, 0), (20, 0), (30, 20), (40, 20), (50, 40)])
def test_a_population_that_goes_on_meets_at_the_turn_that_is_not_done(furthest: int, done: int) -> None:
    scheduler = Turns(
        time_attr="step", metric="auc", mode="max", perturbation_interval=20, synch=True,
        hyperparam_mutations={"optim.lr": [1, 2]},
    )  # fmt: skip
    scheduler.go_on(furthest)
    assert (scheduler._done, scheduler._next_perturbation_sync) == (done, done + 20)
