"""Each recipe's flattened config as text: a changed default shows in the diff.

After a change that is meant: `python tests/golden/test_golden.py` writes the files anew.
"""

import importlib
from pathlib import Path

import pytest

from rtrain.cli import golden

HERE = Path(__file__).parent
RECIPES = [p.stem for p in sorted((HERE.parents[1] / "recipes").glob("*.py"))]


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_the_golden_one(name: str) -> None:
    now = golden(importlib.import_module(f"recipes.{name}").run())
    then = (HERE / f"{name}.txt").read_text()
    assert now == then, "the config changed; if that is meant: python tests/golden/test_golden.py"


def test_every_recipe_has_debug() -> None:
    for name in RECIPES:
        recipe = importlib.import_module(f"recipes.{name}")
        assert recipe.debug().name != recipe.run().name


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(HERE.parents[1]))
    for name in RECIPES:
        (HERE / f"{name}.txt").write_text(golden(importlib.import_module(f"recipes.{name}").run()))
