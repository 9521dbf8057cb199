"""One tiny language export, trained inline, for all tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest

import rtrain
from recipes.gpt_stdlib import debug


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    changes = {"storage": str(tmp_path_factory.mktemp("language")), "duration.steps": 400, "data.context": 128}
    changes |= {"tracking.to": (), "cluster.workers": 1, "optim.lr": 5e-3, "optim.schedule.warmup_steps": 20}
    changes |= {"evaluation.every.steps": 200}
    result = rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    assert result is not None
    return str(result.export)


@pytest.fixture
def engine(exported: str) -> Iterator[Any]:
    from rtrain.language.engine import Engine
    from rtrain.language.model import load

    made = Engine(load(exported, device="cpu"), lanes=8, waiting=4)
    yield made
    made.close()
