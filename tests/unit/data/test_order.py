import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.data.order import Block, Order
from rtrain.errors import ConfigError

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def blocks_of(sizes: list[int], first: int = 0) -> list[Block]:
    edges = list(itertools.accumulate(sizes, initial=first))
    return list(itertools.pairwise(edges))


def visited(order: Order, epoch: int) -> list[int]:
    """Row numbers in the order of visit."""
    rows: list[int] = []
    for window in order.windows(epoch):
        assert window.start == len(rows)
        inside = np.concatenate([np.arange(*block) for block in window.blocks])
        rows += inside[order.permutation(epoch, window)].tolist()
        assert window.stop == len(rows)
    return rows


@given(sizes, st.integers(1, 60), st.integers(0, 3), st.integers(0, 2**32), st.integers(0, 100))
def test_an_epoch_visits_every_row_once(sizes: list[int], window_rows: int, epoch: int, seed: int, first: int) -> None:
    order = Order(blocks_of(sizes, first), seed=seed, window_rows=window_rows)
    assert sorted(visited(order, epoch)) == list(range(first, first + sum(sizes)))
    assert order.rows == sum(sizes)


@given(sizes, st.integers(1, 60))
def test_a_window_holds_at_most_window_rows_or_one_row_group(sizes: list[int], window_rows: int) -> None:
    for window in Order(blocks_of(sizes), seed=1, window_rows=window_rows).windows(0):
        assert window.rows <= window_rows or len(window.blocks) == 1


@given(sizes, st.integers(1, 60))
def test_without_a_seed_the_order_is_that_of_the_data(sizes: list[int], window_rows: int) -> None:
    assert visited(Order(blocks_of(sizes), seed=None, window_rows=window_rows), 0) == list(range(sum(sizes)))


def test_the_order_is_repeatable_and_differs_by_epoch_and_seed() -> None:
    blocks = blocks_of([100] * 10)
    for window_rows in (250, 1_000_000):
        order = Order(blocks, seed=1, window_rows=window_rows)
        assert visited(order, 0) == visited(Order(blocks, seed=1, window_rows=window_rows), 0)
        assert visited(order, 0) != visited(order, 1)
        assert visited(order, 0) != visited(Order(blocks, seed=2, window_rows=window_rows), 0)


def test_windows_of_one_epoch_are_shuffled_differently() -> None:
    order = Order(blocks_of([50, 50]), seed=1, window_rows=50)
    first, second = (order.permutation(0, window) for window in order.windows(0))
    assert (first != second).any()


def test_data_of_one_window_is_shuffled_the_same_whatever_its_row_groups_are() -> None:
    assert visited(Order(blocks_of([100]), seed=1), 3) == visited(Order(blocks_of([7] * 14 + [2]), seed=1), 3)


def test_the_order_is_the_one_that_stored_cursors_count_in() -> None:
    """A golden order: if it changes, runs that were stopped before the change resume on other samples."""
    order = Order(blocks_of([4, 4, 4]), seed=7, window_rows=8)
    assert visited(order, 0) == GOLDEN[0]
    assert visited(order, 1) == GOLDEN[1]


GOLDEN = [[9, 1, 2, 11, 10, 8, 0, 3, 4, 7, 5, 6], [6, 10, 11, 8, 5, 9, 4, 7, 2, 3, 1, 0]]


def test_a_shuffle_is_uniform() -> None:
    """Where row 0 of 8 goes over 4000 epochs: chi-square of 7 degrees of freedom, 0.999 quantile 24.3."""
    order = Order([(0, 8)], seed=5)
    (window,) = order.windows(0)
    places = np.bincount([int(order.permutation(e, window).argmin()) for e in range(4000)], minlength=8)
    assert ((places - 500) ** 2 / 500).sum() < 24.3


def test_a_large_window_has_no_repetition() -> None:
    order = Order([(0, 300_000)], seed=0)
    drawn = order.permutation(0, order.windows(0)[0])
    assert drawn.dtype == np.int64
    assert (np.sort(drawn) == np.arange(300_000)).all()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.window_rows: must be at least 1, got 0"):
        Order([(0, 1)], seed=0, window_rows=0)
    with pytest.raises(ConfigError, match="seed: must be at least 0, got -1"):
        Order([(0, 1)], seed=-1)
