"""What is projected is what one thing costs times how many there are."""

import pytest

from bench.scale import BATCH, GROUP_ROWS, Costs, planned_s, projected, table

COSTS = Costs(
    row_read_s=1e-6, row_file_bytes=100.0, group_open_s=2e-5, group_bytes=1000.0, group_order_s=1e-5,
    row_checked_s=1e-8, row_ledger_s=1e-7, row_ledger_bytes=0.5, row_scored_s=1e-7, plan_s=((8, 1.0), (16, 4.0)),
)  # fmt: skip


def test_a_size_by_hand() -> None:
    found = projected(COSTS, ranks=64, data_bytes=100.0 * 64 * GROUP_ROWS, step_s=0.01)
    assert found.cores == pytest.approx(BATCH * 1e-6 / 0.01)
    assert found.open_s == pytest.approx(64 * 3e-5) and found.open_gb == pytest.approx(64e-6)
    assert found.checked_s == pytest.approx(64 * GROUP_ROWS * 1e-8)
    assert found.ledger_gb == pytest.approx(0.25 * 64 * GROUP_ROWS / 1e9)
    assert found.metrics_s == pytest.approx(0.02 * GROUP_ROWS * 1e-7)


def test_planning_grows_as_it_was_seen_to() -> None:
    assert planned_s(COSTS, 16) == pytest.approx(4.0) and planned_s(COSTS, 64) == pytest.approx(64.0)


def test_what_a_step_costs_does_not_grow_with_the_ranks() -> None:
    few, many = (projected(COSTS, ranks=n, data_bytes=1e12, step_s=0.01) for n in (64, 4096))
    assert (few.cores, few.storage) == (many.cores, many.storage) and few.checkpoint_s > many.checkpoint_s
    assert table(COSTS, 0.01).count("\n") == 12
