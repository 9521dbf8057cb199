"""The document of published runs is the one that `bench.published` writes, and its errors stay in their bounds."""

import re
import statistics

import pytest

from bench.published import OUT
from bench.published_runs import entries, measured, public

CHEAP = ("Llama 3.1 8B, FSDP 8, eager", "MPT 125m", "GPT 1.7B", "DLRM-DCNv2", "HSTU", "12 layers of 768, tf32")
"""One of each source, of few pieces."""


def rows() -> list[str]:
    return [line for line in OUT.read_text().splitlines() if line.startswith("| ") and " x " in line]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_every_entry_is_in_the_document_with_its_error_and_source() -> None:
    text, listed = OUT.read_text(), entries()
    assert len(rows()) == len(listed) and len(public()) >= 8
    for row, entry in zip(rows(), listed, strict=True):
        name, devices, unit, published, _, _, source = cells(row)
        assert (name, devices, unit) == (entry.name, f"{entry.devices} x {entry.hardware}", entry.unit)
        assert float(published.replace(",", "")) == pytest.approx(entry.published, rel=0.005)
        assert source == entry.source
    assert re.findall(r"Of (\d+) entries the median", text) == [str(len(public())), str(len(measured()))]


def test_errors_of_what_others_have_published_are_within_the_bounds() -> None:
    found = [[float(cell.replace(",", "")) for cell in cells(row)[3:5]] for row in rows()[: len(public())]]
    errors = [abs(predicted / published - 1) for published, predicted in found]
    assert statistics.median(errors) <= 0.15 and max(errors) <= 0.35
    said = re.search(r"the median error is ([\d.]+)%, the worst ([\d.]+)%", OUT.read_text())
    assert said and [float(one) / 100 for one in said.groups()] == pytest.approx(
        [statistics.median(errors), max(errors)], abs=0.002
    )


@pytest.mark.parametrize("named", CHEAP)
def test_what_is_predicted_has_not_changed_since(named: str) -> None:
    """Where this fails, write the document anew."""
    at, entry = next((n, e) for n, e in enumerate(entries()) if e.name.startswith(named))
    predicted = entry.predicted()
    assert float(cells(rows()[at])[4].replace(",", "")) == pytest.approx(predicted, rel=0.005)
    assert abs(predicted / entry.published - 1) <= 0.35
