"""Each command of the bench says what it is."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parent
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def test_all_are_found() -> None:
    assert {"bench.__main__", "bench.encodings", "bench.peers.sasrec"} <= set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_help(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # which a peer sets for itself
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # another test's: runpy warns of it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    text = ast.get_docstring(ast.parse((ROOT.parent / (module.replace(".", "/") + ".py")).read_text()))
    assert text is not None
    assert text.partition("\n")[0] in capsys.readouterr().out
