"""A replica on a device that is not the processor brings all that meets to one place: `tests/elsewhere/device.py`.

What a GPU computes there, `tests/gpu/test_serving.py` holds.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rtrain.export.artifact import Predictor
from tests.unit.export.test_program import MODELS, NO_GRAPH, asked_of, folder, run_of
from tests.unit.training.jobs import train

__all__ = ["folder"]
ALL = MODELS | {"hstu": NO_GRAPH["hstu"]}
ROWS = 200


def elsewhere(**asked: Any) -> Any:
    """The answer of a process that has the device."""
    words = [sys.executable, "-W", "ignore", "-m", "tests.elsewhere.answers"]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("meets") is False, "the device takes what lies on the host"
    return told


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("din", "trained"),
        ("dlrm", "int4"),
        *(
            pytest.param(name, tables, marks=pytest.mark.slow)
            for name, tables in (
                *((name, "trained") for name in ALL if name != "din"),
                ("din", "float16"), ("ensemble", "int8"), ("hstu", "int4"),
            )
        ),
    ],
)  # fmt: skip
def test_rows_are_answered_as_by_the_processor(name: str, tables: Any, folder: Path) -> None:
    run = run_of(folder, f"{name}-{tables}-elsewhere", ALL[name], tables=tables, tolerance=100.0)
    export = str(train(run)["export"])
    rows = asked_of(run)[0][:ROWS]
    here = Predictor(export, program="eager").predict(rows)
    # To the bit: the processor computes both. The tables' rows are summed otherwise where they lie on the host.
    told = elsewhere(export=export, rows=rows)
    assert told["device"] == here
    assert told["host"] == told["shards"] == Predictor(export, tables="host").predict(rows)
