"""A model whose class is in a module of one's own, judged by the command line, which has to import it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.release.runs import run_of, write_rows
from tests.unit.training.jobs import train

MINE = '''
from dataclasses import dataclass

import rtrain


@dataclass(frozen=True, kw_only=True)
class Mine(rtrain.DLRM):
    """As DLRM."""
'''


def told(folder: Path, *words: str, verb: str = "gate") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rtrain", verb, "runs/mine", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def test_a_model_of_ones_own_is_judged_where_its_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_here.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    from mine_here import Mine  # type: ignore[import-not-found]

    write_rows(tmp_path)
    train(replace(run_of(tmp_path, "mine"), model=Mine(dim=8, bottom=(8,), top=(16,))))
    judged = told(tmp_path, "--module", "mine_here", "--calibration", "9")
    assert judged.returncode == 0 and "passed" in judged.stdout, judged
    record = tmp_path / "runs/mine/export/gate.json"
    before = record.read_bytes()
    forgotten = told(tmp_path)
    assert forgotten.returncode == 2 and "(a command: --module mine_here)" in forgotten.stderr, forgotten
    assert record.read_bytes() == before, "nobody judged it"
    # Of a champion only what it recorded is read: also one whose class is gone can be replaced.
    train(run_of(tmp_path, "plain"))
    command = [sys.executable, "-m", "rtrain", "gate", "runs/plain", "--champion", "runs/mine", "--calibration", "9"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert plain.returncode in (0, 1) and "plain against mine" in plain.stdout, plain
    wrong = told(tmp_path, "--module", "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.strip().endswith(
        "--module: No module named 'nowhere'. Call this in the folder that has it"
    )
    (tmp_path / "broken_here.py").write_text("import nowhere_else.part\n")
    broken = told(tmp_path, "--module", "broken_here")
    assert broken.returncode == 2 and broken.stderr.strip().endswith(
        "--module broken_here: it imports 'nowhere_else', which is not there. Install it"
    ), broken
    ledger = told(tmp_path, "--module", "mine_here", verb="ledger")
    assert ledger.returncode == 0 and "epoch" in ledger.stdout, ledger
