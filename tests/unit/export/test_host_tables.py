"""Tables that stay where the processor looks them up answer as those that lie with what computes.

Here both are one memory: what a GPU adds, `tests/gpu/test_serving.py` holds.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor
from tests.unit.export.test_program import MODELS, asked_of, folder, run_of
from tests.unit.training.jobs import train

__all__ = ["folder"]
WIDE = 100.0
"""A tolerance that refuses nothing: these runs learn for 12 steps."""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("din", {}),
        ("dlrm", {"tables": "int4", "tolerance": WIDE}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("deepfm", {}), ("ple", {}), ("ensemble", {"tables": "int8", "tolerance": WIDE}))
        ),
    ],
)
def test_answers_are_the_same(name: str, more: Any, folder: Path) -> None:
    run = run_of(folder, f"{name}-host", MODELS[name], program="onnx", **more)
    export = str(train(run)["export"])
    beside, here = Predictor(export, tables="host"), Predictor(export, program="eager")
    assert beside.program is None and beside.on_host and not here.on_host
    rows, _ = asked_of(run)
    assert np.abs(np.array(beside.predict(rows)) - np.array(here.predict(rows))).max() < 1e-6
    assert beside.predict([]) == []
    with pytest.raises(ConfigError, match="tables: host, but what is compiled looks up itself"):
        Predictor(export, tables="host", program="compiled")
