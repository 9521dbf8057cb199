"""The document of published runs is the one that `bench.published` writes."""

from bench.published import OUT, entries


def test_every_entry_is_in_the_document_with_its_error_and_source() -> None:
    text = OUT.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and " x " in line]
    listed = entries()
    assert len(rows) == len(listed) >= 8
    for row, entry in zip(rows, listed, strict=True):
        assert row.startswith(f"| {entry.name} | {entry.devices} x {entry.hardware} | {entry.published:,.0f} | ")
        assert entry.source in row
    assert f"Of {len(listed)} entries the median error is" in text


def test_what_is_predicted_has_not_changed_since() -> None:
    """Of the smallest; where this fails, write the document anew."""
    smallest = min(entries(), key=lambda entry: (entry.devices, entry.published))
    assert f"| {smallest.predicted():,.0f} |" in next(
        line for line in OUT.read_text().splitlines() if line.startswith(f"| {smallest.name} ")
    )
