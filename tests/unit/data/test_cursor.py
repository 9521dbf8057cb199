import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.data.cursor import Cursor, batches_per_epoch, check_batches, next_bounds
from rtrain.errors import ConfigError, DataError

rows_and_batch = st.integers(1, 400).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(1, rows + 50)))


def epoch(cursor: Cursor, rows: int, global_batch: int) -> list[tuple[int, int]]:
    """All batches that are left of the cursor's epoch."""
    bounds = []
    started = cursor.epoch
    while cursor.epoch == started:
        bounds.append(next_bounds(cursor, rows, global_batch))
        cursor = cursor.after(bounds[-1][1], rows)
    assert cursor == Cursor(epoch=started + 1)
    return bounds


@given(rows_and_batch)
def test_an_epoch_is_cut_into_nearly_equal_batches_that_drop_nothing(case: tuple[int, int]) -> None:
    rows, global_batch = case
    bounds = epoch(Cursor(), rows, global_batch)
    steps = batches_per_epoch(rows, global_batch)
    assert bounds == [(b * rows // steps, (b + 1) * rows // steps) for b in range(steps)]
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) <= global_batch and max(sizes) - min(sizes) <= 1 and sum(sizes) == rows


@given(rows_and_batch, st.data())
def test_resuming_between_any_two_batches_gives_the_same_rest(case: tuple[int, int], data: st.DataObject) -> None:
    rows, global_batch = case
    bounds = epoch(Cursor(), rows, global_batch)
    number = data.draw(st.integers(0, len(bounds) - 1))
    assert epoch(Cursor(sample=bounds[number][0]), rows, global_batch) == bounds[number:]


@given(rows_and_batch, st.data())
def test_another_global_batch_in_mid_epoch_repeats_and_drops_nothing(
    case: tuple[int, int], data: st.DataObject
) -> None:
    rows, global_batch = case
    sample = data.draw(st.integers(0, rows - 1))
    bounds = epoch(Cursor(sample=sample), rows, global_batch)
    assert [start for start, _ in bounds] == [sample, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == rows
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) <= global_batch and max(sizes) - min(sizes) <= 1
    assert len(sizes) == batches_per_epoch(rows - sample, global_batch)


def test_a_cursor_survives_json() -> None:
    cursor = Cursor(epoch=3, sample=4096)
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor


@pytest.mark.parametrize("stored", [{}, {"epoch": 1}, {"epoch": 1, "sample": 2, "world_size": 3}])
def test_a_stored_cursor_with_other_keys_is_refused(stored: dict[str, int]) -> None:
    with pytest.raises(DataError, match="has the keys 'epoch' and 'sample', got"):
        Cursor.from_dict(stored)


@pytest.mark.parametrize("value", [-1, 1.5, "7", None, True])
def test_a_position_that_is_no_count_is_refused(value: int) -> None:
    with pytest.raises(DataError, match="cursor: sample must be an integer of at least 0, got"):
        Cursor.from_dict({"epoch": 0, "sample": value})


def test_what_cannot_be_cut_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match="global batch: must be at least 1 row, got 0"):
        next_bounds(Cursor(), 10, 0)
    with pytest.raises(DataError, match="no rows"):
        next_bounds(Cursor(), 0, 4)
    with pytest.raises(
        DataError, match="stands at sample 10 of an epoch that has 10 rows, so it belongs to other data"
    ):
        next_bounds(Cursor(sample=10), 10, 4)
    with pytest.raises(ConfigError, match=r"global_batch 3: 3 rows make 1 .* too few for 4 data ranks\. Raise the"):
        check_batches(3, 3, 0, 4)
    with pytest.raises(ConfigError, match="too few for 2 data ranks, which take two rows each at least"):
        check_batches(3, 3, 0, 2, least=2)
    with pytest.raises(ConfigError, match=r"data rank 2 is not one of 0\.\.1"):
        check_batches(3, 3, 2, 2)
