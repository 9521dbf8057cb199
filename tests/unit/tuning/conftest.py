"""A run to search with, and what stands in for a sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rtrain


class Chosen:
    """Proposes what a test has chosen, and nothing that it has not."""

    def __init__(self, values: Mapping[str, float]):
        self.values = values

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        assert low <= self.values[name] <= high
        return self.values[name]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        assert low <= self.values[name] <= high
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: tuple[int, ...]) -> int:
        assert self.values[name] in choices
        return int(self.values[name])


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """The main job's recipe, whose data are never read here."""
    from recipes.dlrm_movielens import run as main_run

    return rtrain.override(main_run(), {"name": "search", "storage": str(tmp_path / "runs")})
