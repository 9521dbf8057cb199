"""Recipes' resolved configs against their golden files: a changed default shows as a diff in review.

python -m tests.golden.test_golden     # writes the files anew
"""

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import (
    bpr_movielens,
    dlrm_criteo,
    dlrm_movielens,
    dlrm_synthetic,
    gpt_stdlib,
    hstu_movielens,
    lightgcn_movielens,
    mmoe_movielens,
    sasrec_movielens,
    sasrec_sequences,
    text_tower_movielens,
    two_tower_features_movielens,
    two_tower_movielens,
)
from rtrain.cli.recipe import golden
from rtrain.run import Run

FOLDER = Path(__file__).parent
RECIPES: dict[str, Callable[[], Run]] = {
    "dlrm_criteo": dlrm_criteo.run,
    "dlrm_movielens": dlrm_movielens.run,
    "dlrm_synthetic": dlrm_synthetic.run,
    "gpt_stdlib": gpt_stdlib.run,
    "mmoe_movielens": mmoe_movielens.run,
    "bpr_movielens": bpr_movielens.run,
    "hstu_movielens": hstu_movielens.run,
    "lightgcn_movielens": lightgcn_movielens.run,
    "sasrec_movielens": sasrec_movielens.run,
    "sasrec_sequences": sasrec_sequences.run,
    "text_tower_movielens": text_tower_movielens.run,
    "two_tower_features_movielens": two_tower_features_movielens.run,
    "two_tower_movielens": two_tower_movielens.run,
}
REGENERATE = "python -m tests.golden.test_golden"


def complaint(name: str, found: str) -> str:
    """What differs from the golden file and how to accept it; empty when nothing does."""
    stored = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    lines = difflib.unified_diff(
        stored.splitlines(), found.splitlines(), f"tests/golden/{name}.txt", f"recipes/{name}.py", lineterm="", n=0
    )
    if stored == found:
        return ""
    return "\n".join([f"recipes/{name}.py resolves to another config. If that is meant: {REGENERATE}", *lines])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_to_its_golden_config(name: str) -> None:
    problem = complaint(name, golden(RECIPES[name]()))
    assert not problem, problem


@pytest.mark.parametrize("name", RECIPES)
def test_a_change_is_shown_with_the_way_to_accept_it(name: str) -> None:
    now = golden(RECIPES[name]())
    line = next(text for text in now.splitlines() if text.startswith("optim.lr = "))
    problem = complaint(name, now.replace(line, "optim.lr = 0.5", 1))
    assert REGENERATE in problem.splitlines()[0]
    assert f"-{line}\n+optim.lr = 0.5" in problem


def test_every_golden_file_has_its_recipe() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(RECIPES)


if __name__ == "__main__":
    for recipe, make in RECIPES.items():
        (FOLDER / f"{recipe}.txt").write_text(golden(make()), encoding="utf-8")
        print(f"wrote tests/golden/{recipe}.txt")
