"""The arithmetic of `make bench`; no clock is read here."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench import data, sides
from bench.__main__ import pairs
from bench.ratios import Comparison, summarise, table
from bench.suites import MEMORY, RATE


def test_median_is_of_the_ratios_of_pairs_not_of_the_sides() -> None:
    # A machine that is twice as slow in the second pair slows both sides of it.
    row = summarise(RATE, [100.0, 50.0, 90.0], [100.0, 50.0, 100.0])
    assert (row.median, row.low, row.high, row.pairs) == (1.0, 0.9, 1.0, 3)
    assert row.holds
    assert json.loads(json.dumps(row.to_json()))["bound"] == ">= 0.97"


@pytest.mark.parametrize(
    ("comparison", "value", "holds"),
    [(RATE, 0.97, True), (RATE, 0.969, False), (MEMORY, 1.10, True), (MEMORY, 1.101, False)],
)
def test_bound(comparison: Comparison, value: float, holds: bool) -> None:
    assert comparison.holds(value) is holds


def test_sides_that_measured_unequally_often_are_refused() -> None:
    with pytest.raises(ValueError):
        summarise(RATE, [1.0], [1.0, 2.0])


def test_table_is_aligned_and_says_what_is_missed() -> None:
    text = table([summarise(RATE, [0.5], [1.0]), summarise(MEMORY, [1.0], [1.0])])
    head, rate, memory = text.splitlines()
    assert rate.endswith("MISSED") and memory.endswith("holds")
    assert rate.index(">= 0.97") == memory.index("<= 1.10")
    assert rate[head.index("median") : head.index("median") + 6].strip() == "0.500"


def test_rate_leaves_the_warm_up_out() -> None:
    # 1 s a step until WARM, 0.1 s after it.
    points = []
    for step in range(sides.LOG_EVERY, sides.STEPS + 1, sides.LOG_EVERY):
        at = float(step) if step <= sides.WARM else sides.WARM + 0.1 * (step - sides.WARM)
        points.append({"step": step, "at": at, "loss": 1.0 if step <= sides.WARM else 0.5})
    found = sides.curve(points)
    assert found["rate"] == pytest.approx(data.BATCH / 0.1)
    assert found["loss"] == 0.5


def test_pairs_alternate_and_stay_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def side(name: str, base: float, i: int) -> dict[str, float]:
        order.append(f"{name}{i}")
        return {"rate": base + i}

    ours, theirs = pairs(3, lambda i: side("a", 10, i), lambda i: side("b", 20, i), "test")
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [m["rate"] for m in ours] == [10, 11, 12] and [m["rate"] for m in theirs] == [20, 21, 22]
    assert "pair 3/3: rate 12 / 22" in capsys.readouterr().err


def test_both_sides_cut_the_same_whole_batches() -> None:
    assert data.TRAIN_ROWS % data.BATCH == 0


def test_data_has_the_shape_that_both_sides_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ROWS", 1000)
    path = data.write(tmp_path)
    table_ = pq.read_table(path)
    assert table_.num_rows == 1000 and table_.num_columns == data.DENSE + data.TABLES + 2
    assert 0.15 < table_["label"].to_numpy().mean() < 0.6
    assert not list(path.parent.glob("*.tmp"))
