"""The notebook runs from its first cell to its last, and shows where it is only read what it shows when run."""

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import ROOT, environment, free_port

STORED = ROOT / "notebooks" / "quickstart.ipynb"


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def shape(path: Path) -> list[tuple[str, list[tuple[str, tuple[str, ...]]]]]:
    """The source of each cell, and the kinds of what it shows; a stream counts once, however often it was flushed."""
    found = []
    for cell in cells(path):
        kinds = [(output["output_type"], tuple(output.get("data", {}))) for output in cell.get("outputs", [])]
        found.append(("".join(cell["source"]), [kind for kind, _ in groupby(kinds)]))
    return found


@pytest.mark.slow
def test_it_runs_and_shows_what_is_stored(tmp_path: Path, ray_temp_dir: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "notebooks" / "execute.py"), str(tmp_path / "run.ipynb")],
        cwd=tmp_path,
        env=environment(ray_temp_dir) | {"RTRAIN_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert shape(tmp_path / "run.ipynb") == shape(STORED)


def test_what_is_stored_is_true_anywhere() -> None:
    code = [cell for cell in cells(STORED) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "stored from one whole run"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    for output in outputs:
        shown = json.dumps({k: v for k, v in output.get("data", {}).items() if k != "image/png"} | output)
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", "progress and warnings are of one machine"
        if "image/png" not in output.get("data", {}):
            assert not any(path in shown for path in ("/tmp", "/root", "/home", "/work", "examples/s"))
    assert not any("execution" in cell["metadata"] for cell in code)


def test_every_code_cell_has_words_before_it() -> None:
    kinds = [cell["cell_type"] for cell in cells(STORED)]
    assert kinds[0] == kinds[-1] == "markdown"
    # The last two of serving, a refusal and the stop, are told together.
    unexplained = [n for n in range(1, len(kinds)) if kinds[n] == kinds[n - 1] == "code"]
    assert len(unexplained) <= 1
