"""The model card: every figure is the run's, and what was not measured is said."""

import json
from pathlib import Path

import pytest

from rtrain.errors import UserError
from rtrain.release.card import card, write_card
from rtrain.release.gate import Gate
from rtrain.release.servable import Servable

USE = "Orders items of a page | not for children"


def sections(text: str) -> dict[str, str]:
    """Title -> what stands below it."""
    parts = text.split("\n## ")
    assert parts[0].startswith("# ")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def test_it_tells_what_the_run_recorded(folder: Path) -> None:
    run = folder / "runs" / "good"
    text = card(str(run), USE)
    found, result = sections(text), json.loads((run / "result.json").read_text())
    assert list(found) == [
        f"# good, step {result['best_step']}", "Intended use", "Data", "Quality", "Slices", "Gate", "Lineage"
    ]  # fmt: skip
    assert found["Intended use"].strip() == USE
    for metric in ("auc", "gauc"):
        cells = next(line for line in found["Quality"].splitlines() if line.startswith(f"| {metric} |")).split(" | ")
        assert cells[1] == f"{result['test'][metric]:.4f}" and cells[2].rstrip(" |") == f"{result['valid'][metric]:.4f}"
    slices = [name for name in result["test"] if "[price" in name]
    assert slices and all(f"| {name} | {result['test'][name]:.4f} |" in found["Slices"] for name in slices)
    assert "| user | Id | context | refused |" in found["Data"] and f"`{folder}/rows.parquet`" in found["Data"]
    assert "valid 0.1, test 0.3" in found["Data"] and "label (the probability of 1)" in next(iter(found.values()))
    assert f"| checkpoint | {result['checkpoint']} |" in found["Lineage"] and "torch 2" in found["Lineage"]


def test_its_gate_is_of_these_files(folder: Path) -> None:
    run = str(folder / "runs" / "again")
    assert "passed no gate" in sections(card(run, USE))["Gate"]
    Gate(checks=(Servable(),)).judge(run)
    gate = sections(card(run, USE))["Gate"]
    assert gate.strip().startswith("Passed on 20") and "| servable | passed | loaded in" in gate
    uri = write_card(f"{run}/export", USE)
    assert Path(uri).read_text() == card(run, USE) and uri == f"{run}/export/card.md"


def test_what_it_cannot_be_made_of(folder: Path) -> None:
    with pytest.raises(UserError, match="card: its intended use is empty"):
        card(str(folder / "runs" / "good"), "  ")
    with pytest.raises(UserError, match="there is no finished run"):
        card(str(folder), USE)
