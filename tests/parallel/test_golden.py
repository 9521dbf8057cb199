"""Every recipe at every layout trains along its golden curve, and goes on from the golden checkpoint of any layout.

On the machine that wrote them the curves are met bit for bit. Another processor sums in another order, which shows as
1e-7 of a loss after some steps: hence the tolerance, far below what a wrong factor, shard or mask makes (1e-3).
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtrain.errors import ConfigError
from rtrain.mesh import lay_out
from rtrain.parity import name_of, world_of
from rtrain.training.agreement import refuse
from tests.golden import traces
from tests.golden.traces import DEADLINE_S, DENSE, FOLDER, SAVED, SMALL, in_world, key

SAME = 1e-6
# First weights of .02 go through layer norms, which blow rounding up: with other vector instructions than those that
# wrote them (ATEN_CPU_CAPABILITY=avx2, default) SASRec's curves were 3.0e-5 off and HSTU's 1.3e-6. Two towers divide
# vectors by their lengths, which are small at first: 3.4e-6. On an Intel Xeon of 2.80 GHz, with nothing changed since a
# commit that held elsewhere, SASRec's were 1.1e-4 off over two stages, and those of two towers 2.6e-5 (with features
# 5.1e-5). Under ZeRO, whose Adam DeepSpeed compiles for the processor that it finds, the towers' norms of gradients,
# which are differences of nearly equal vectors, were 8.1e-4 off there, those of text 2.7e-4: to the same digits before
# and after the 30 commits up to then.
OF_OTHER_PROCESSORS = {
    "sasrec_movielens": 3e-4,
    "sasrec_sequences": 1e-4,
    "hstu_movielens": 1e-5,
    "two_tower_movielens": 1e-4,
    "two_tower_features_movielens": 1e-4,
    "text_tower_movielens": 1e-4,
}
NORMS_OF_OTHER_PROCESSORS = {"two_tower_movielens": 2e-3, "text_tower_movielens": 1e-3}
ALWAYS = ("small ", f"hstu_movielens {name_of(DENSE[-1])}")
ALIKE = ("dlrm_synthetic ", "dlrm_criteo ", "two_tower_features_movielens ", "sasrec_sequences ")
"""Recipes whose model and loss another one has, too."""
RESUMED = 5e-6
"""At another layout the sums of the steps after the checkpoint are taken in another order, and Adam carries them on."""
GOLDEN: dict[str, dict[str, list[float]]] = json.loads((FOLDER / "curves.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("golden")
    traces.runs(folder)
    return str(folder)


@pytest.fixture(scope="module")
def found(data: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the tests that were drawn ask for."""
    items = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {of.params["curve"] for of in items if of and "curve" in of.params}
    trained: dict[str, Any] = {}
    for world in (1, 2):
        cases = [case for case in traces.cases(world) if key(case) in asked]
        if cases:
            trained |= in_world(world, traces.train_all, cases, data, False, deadline_s=DEADLINE_S)[0]
    return trained


def often(name: str) -> Any:
    """One process of each kind of recipe always, and every layout of small ones; of the rest `make test` draws some."""
    alone = name.endswith(f" {name_of(traces.ALONE)}") and not name.startswith(ALIKE)
    always = alone or name.startswith(ALWAYS)
    return name if always else pytest.param(name, marks=pytest.mark.slow)


def apart(a: list[float], b: list[float]) -> float:
    return max((abs(x - y) / max(1.0, abs(y)) for x, y in zip(a, b, strict=True)), default=0.0)


def test_every_case_has_its_curve() -> None:
    assert sorted(GOLDEN) == sorted(key(case) for world in (1, 2) for case in traces.cases(world))
    assert all(len(curve["losses"]) == traces.STEPS for curve in GOLDEN.values())


@pytest.mark.parametrize("curve", map(often, sorted(GOLDEN)))
def test_a_layout_trains_along_its_golden_curve(found: dict[str, Any], curve: str) -> None:
    for what in ("losses", "grad_norms"):
        recipe = curve.split()[0].rstrip(":")
        same = OF_OTHER_PROCESSORS.get(recipe, SAME)
        if what == "grad_norms":
            same = NORMS_OF_OTHER_PROCESSORS.get(recipe, same)
        assert apart(found[curve][what], GOLDEN[curve][what]) <= same, (what, found[curve][what], GOLDEN[curve][what])


def of_the_day(pairs: list[tuple[str, traces.Case]], draw: random.Random) -> list[tuple[str, traces.Case]]:
    """Every checkpoint at some layout, and every layout from some checkpoint."""
    found = [draw.choice([pair for pair in pairs if pair[0] == name]) for name in sorted({name for name, _ in pairs})]
    left = {case for _, case in pairs} - {case for _, case in found}
    return found + [draw.choice([pair for pair in pairs if pair[1] == case]) for case in sorted(left, key=key)]


def test_golden_checkpoints_go_on_at_every_layout(data: str, seed: str) -> None:
    """A seed draws of each checkpoint one layout, so that each layout is there."""
    every = [
        (key((f"small {name}", written)), (f"small {name}", read))
        for name, layouts in SMALL.items()
        for written in layouts
        for read in (layouts if name != "gpt_stdlib" else DENSE[1:])
    ]
    every = [(name, case) for name, case in every if case in traces.cases(2)]
    assert len(every) >= 20
    pairs = of_the_day(every, random.Random(seed)) if seed else every
    resumed = in_world(2, traces.resume_all, pairs, data, deadline_s=DEADLINE_S)[0]
    for name, case in pairs:
        curve = resumed[f"{name} -> {key(case)}"]
        assert apart(curve["losses"], GOLDEN[name]["losses"][SAVED:]) <= RESUMED, (name, case)


@pytest.mark.parametrize("name", traces.LAYOUTS)
def test_a_recipe_is_trained_at_each_layout_that_it_can_have(data: str, name: str) -> None:
    run, legal = traces.runs(Path(data))[name], []
    for layout in DENSE:
        try:
            refuse(replace(run, parallel=layout), lay_out(layout, world_of(layout)))
        except ConfigError as error:
            assert str(error).startswith(("parallel plan", "parallel."))
        else:
            legal.append(layout)
    assert tuple(legal) == traces.LAYOUTS[name]


def test_a_wrong_factor_would_be_seen() -> None:
    curve = GOLDEN["gpt_stdlib dp2 zero1"]["losses"]
    assert apart([x * (1 + 1e-5) for x in curve], curve) > SAME
    assert Path(traces.folder_of("small gpt_stdlib dp2 zero1")).is_dir()
