import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.data.cursor import largest_share
from rtrain.data.order import Block, Order, most_strata
from rtrain.errors import ConfigError
from rtrain.rounding import ceil_div

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def blocks_of(sizes: list[int], first: int = 0) -> list[Block]:
    edges = list(itertools.accumulate(sizes, initial=first))
    return list(itertools.pairwise(edges))


def visited(order: Order, epoch: int) -> list[int]:
    """Row numbers in the order of visit."""
    strata = []
    for stratum in range(order.strata):
        rows: list[int] = []
        for window in order.windows(epoch, stratum):
            assert window.start == len(rows)
            inside = np.concatenate([np.arange(*block) for block in window.blocks])
            rows += inside[order.permutation(epoch, window)].tolist()
            assert window.stop == len(rows)
        strata.append(rows)
    return [strata[at % order.strata][at // order.strata] for at in range(order.rows)]


@given(sizes, st.integers(1, 60), st.integers(0, 3), st.integers(0, 2**32), st.integers(0, 100))
def test_an_epoch_visits_every_row_once(sizes: list[int], window_rows: int, epoch: int, seed: int, first: int) -> None:
    order = Order(blocks_of(sizes, first), seed=seed, window_rows=window_rows)
    assert sorted(visited(order, epoch)) == list(range(first, first + sum(sizes)))
    assert order.rows == sum(sizes)


@given(sizes, st.integers(1, 60))
def test_windows_hold_at_most_window_rows_or_a_row_group_each(sizes: list[int], window_rows: int) -> None:
    order = Order(blocks_of(sizes), seed=1, window_rows=window_rows)
    for stratum in range(order.strata):
        for window in order.windows(0, stratum):
            assert window.rows <= window_rows // order.strata or len(window.blocks) == 1
    if order.strata > 1:
        most = [max(w.rows for w in order.windows(0, stratum)) for stratum in range(order.strata)]
        assert sum(most) < 2 * window_rows < 2 * order.rows


def test_rows_that_do_not_fit_a_window_are_parted_by_their_row_groups_alone() -> None:
    for groups, rows, window_rows, strata in (
        (64, 100, 6400, 1),  # they fit
        (64, 100, 6399, 32),
        (64, 100, 1600, 16),  # a group of each stratum in memory
        (64, 100, 99, 1),
        (1, 6400, 100, 1),  # nothing to deal
        (
            60,
            100,
            5999,
            16,
        ),  # whose ends lie in 12 groups, read twice; those of 32 in 28
    ):
        assert most_strata(blocks_of([rows] * groups), window_rows) == strata, (groups, rows, window_rows)


uneven = st.lists(st.integers(1, 9), min_size=4, max_size=40)


@given(uneven, st.integers(4, 60), st.integers(1, 20), st.integers(1, 60), st.data())
def test_ranks_deal_every_batch_and_keep_to_their_strata(
    sizes: list[int], window_rows: int, world: int, batch: int, data: st.DataObject
) -> None:
    order = Order(blocks_of(sizes), seed=1, window_rows=window_rows)
    start = data.draw(st.integers(0, order.rows - 1))
    stop = min(order.rows, start + batch)
    dealt, counts = list[tuple[int, int]](), list[int]()
    for rank in range(world):
        mine = [
            (part.stratum, at) for part in order.share(start, stop, rank, world) for at in range(part.first, part.stop)
        ]
        assert {stratum for stratum, _ in mine} <= set(order.owned(rank, world))
        dealt, counts = dealt + mine, [*counts, len(mine)]
    assert sorted(at * order.strata + stratum for stratum, at in dealt) == list(range(start, stop))
    assert dealt == [
        (part.stratum, at) for part in order.share(start, stop, 0, 1) for at in range(part.first, part.stop)
    ], "the same rows one after the other at any number of ranks"
    assert max(counts) <= largest_share(stop - start, world)
    if order.strata == 1:
        assert max(counts) - min(counts) <= 1


@given(uneven, st.integers(4, 60), st.integers(1, 20))
def test_a_checked_batch_leaves_no_rank_without_a_row(sizes: list[int], window_rows: int, world: int) -> None:
    order = Order(blocks_of(sizes), seed=1, window_rows=window_rows)
    batch = (1 if order.strata == 1 or world == 1 else 2) * world
    if order.rows // ceil_div(order.rows, batch) < batch:
        with pytest.raises(ConfigError, match="too few for"):
            order.check(batch, 0, world)
        return
    order.check(batch, 0, world)
    for start in range(0, order.rows - batch + 1, batch):
        assert all(list(order.share(start, start + batch, rank, world)) for rank in range(world))


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16, 32])
def test_a_rank_reads_its_part_of_the_row_groups(world: int) -> None:
    order = Order(blocks_of([100] * 64), seed=1, window_rows=1600)
    assert order.strata == 16
    read = [
        sum(window.rows for stratum in order.owned(rank, world) for window in order.windows(0, stratum))
        for rank in range(world)
    ]
    assert max(read) == 6400 // min(world, 16)


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
