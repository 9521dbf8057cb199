import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from rtrain.data.prefetch import NAME, Prefetch
from rtrain.errors import DataError


def threads() -> int:
    return sum(t.name == NAME for t in threading.enumerate())


def numbers(stop: int, closed: list[bool], made: list[int]) -> Iterator[int]:
    try:
        for number in range(stop):
            made.append(number)
            yield number
    finally:
        closed.append(True)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_come_in_order_and_end(depth: int) -> None:
    closed: list[bool] = []
    assert list(Prefetch(numbers(100, closed, []), depth)) == list(range(100))
    assert closed == [True]


def test_no_more_than_depth_items_are_made_ahead() -> None:
    made: list[int] = []
    ready = threading.Event()

    def slow() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 2:
                ready.set()
            yield number

    items = Prefetch(slow(), 2)
    assert next(items) == 0
    assert ready.wait(10)  # item 2 takes the place of item 0
    items.close()
    assert made == [0, 1, 2]


def test_an_error_is_raised_behind_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise DataError("rows.parquet: damaged")

    items = Prefetch(failing(), 4)
    assert next(items) == 1
    with pytest.raises(DataError, match=r"rows\.parquet: damaged"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)
    assert threads() == 0


def test_close_ends_the_thread_and_the_iterator() -> None:
    closed: list[bool] = []
    items = Prefetch(numbers(10**9, closed, []), 2)
    assert next(items) == 0
    items.close()
    items.close()
    assert closed == [True] and threads() == 0
    with pytest.raises(StopIteration):
        next(items)


def test_dropping_it_ends_the_thread() -> None:
    closed: list[bool] = []
    items = Prefetch(Prefetch(numbers(10**9, closed, []), 1), 2)
    assert next(items) == 0
    del items
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join(10)
    assert closed == [True] and threads() == 0


def test_a_program_that_does_not_close_it_still_exits_cleanly() -> None:
    code = """
import itertools
from rtrain.data.prefetch import Prefetch
items = Prefetch(Prefetch(itertools.count(), 1), 2)
assert next(items) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
